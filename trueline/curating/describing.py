"""What `trueline check` says of a data set beyond its counts: agreement, label noise, length and position, dimensions, languages.

Every number comes from the data alone, with its interval where it is a share, and with what it cannot know:

    length        share of pairs in which the better response is the longer one (ties apart)
    position      share of comparisons won by what stands second in the file, where the format keeps places (AlpacaEval)
    agreement     of comparisons that stand in the file more than once, the share that says the same; cycles among three
    label noise   from contradictions c of repeated comparisons: 2 e (1 - e) = c;  and at most 1 - A, where A is the held-out accuracy of
                  a word model that is told nothing else (with uniform flips at rate e nobody can beat 1 - e)
    dimensions    for pairs rated in several aspects, how often two of them order a pair oppositely
    duplicates    near-duplicates by MinHash among the rows that are no exact ones
    languages     a rough mix
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from trueline.curate.contract import pairs_of
from trueline.curating.language import language
from trueline.curating.text import MinHash, group_text, shingles, word_hashes
from trueline.groups import Group, response_text
from trueline.intervals import Interval, bootstrap_mean, wilson

SAMPLED = 20_000  # rows looked at for what takes long: the first, every k-th of a larger file
LEAST_PAIRS = 200  # for a word model
_SIDE = re.compile(r"^(?P<name>.+)_(?P<side>chosen|rejected)$|^(?P<other>chosen|rejected)_(?P<aspect>.+)$")


def describe(groups: Sequence[Group], copies: int = 0) -> dict[str, Any]:
    """All that can be said of these groups; a part that the data do not allow is absent. JSON-ready.

    copies: rows that were dropped because an earlier one says exactly the same; of pairs, those are repeats that agree.
    """
    found: dict[str, Any] = {"languages": languages(groups)}
    if (near := near_duplicates(groups)) is not None:
        found["near_duplicates"] = near
    pairs = [(g, p) for g in groups if (p := pairs_of(g)) is not None]
    if pairs:
        found["length"] = length_bias(pairs)
        if agreement := agreement_of(groups, copies if len(pairs) == len(groups) else 0):
            found["agreement"] = agreement
        if len(pairs) >= LEAST_PAIRS:
            found["label_noise"] = noise_bound(pairs)
        if position := position_bias(groups):
            found["position"] = position
    if dimensions := dimension_conflict(groups):
        found["dimensions"] = dimensions
    return found


def thinned(groups: Sequence[Any], most: int = SAMPLED) -> list[Any]:
    """Every k-th, so that at most so many are left."""
    return list(groups[:: max(1, math.ceil(len(groups) / most))])


def languages(groups: Sequence[Group]) -> dict[str, float]:
    """Share of rows by language, the commonest first."""
    told = Counter(language(group_text(g, "all")) for g in thinned(groups))
    return {name: count / told.total() for name, count in told.most_common(8)}


def near_duplicates(groups: Sequence[Group], similarity: float = 0.8) -> dict[str, Any] | None:
    """Rows alike to an earlier one by estimated Jaccard similarity of runs of five words."""
    from trueline.curating.buckets import candidates, components

    rows = thinned(groups)
    if len(rows) < 2:
        return None
    sets = [np.unique(shingles(word_hashes(group_text(g, "all")), 5)) for g in rows]
    signatures = MinHash(128, 1).signatures(sets)
    pairs = candidates(signatures, similarity)
    alike = (
        (signatures[pairs[:, 0]] == signatures[pairs[:, 1]]).mean(axis=1) >= similarity
        if len(pairs)
        else np.zeros(0, bool)
    )
    first, size = components(len(rows), pairs[alike])
    later = int((first != np.arange(len(rows))).sum())
    return {"share": later / len(rows), "rows": later, "of": len(rows), "largest": int(size.max())}


def length_bias(pairs: Sequence[tuple[Group, Any]]) -> dict[str, Any]:
    """How often the better response is the longer one, and by how much (median of the logarithm of their ratio, as a factor)."""
    sizes = [(len(response_text(a)), len(response_text(b)), g.prompt_key()) for g, (a, b) in pairs]
    unequal = [(float(a > b), key) for a, b, key in sizes if a != b]
    ratios = [math.log(max(a, 1) / max(b, 1)) for a, b, _ in sizes]
    return {
        **_share([v for v, _ in unequal], [k for _, k in unequal]),
        "median_ratio": math.exp(float(np.median(ratios))),
        "equal": len(sizes) - len(unequal),
    }


def position_bias(groups: Sequence[Group]) -> dict[str, Any]:
    """Wins of the second place, where the format tells places, and whether one side is always the same model."""
    told = [(g, g.extras["preference"]) for g in groups if isinstance(g.extras.get("preference"), (int, float))]
    decided = [(float(p > 1.5), g.prompt_key()) for g, p in told if p != 1.5]
    if not decided:
        return {}
    fixed = [
        c
        for c in ("generator_1", "generator_2")
        if len({str(g.extras.get(c)) for g, _ in told}) == 1 and c in told[0][0].extras
    ]
    sides = [{r.source for r in g.responses} for g, _ in told]
    always = set.intersection(*sides) - {"data"} if sides else set()
    return {
        **_share([v for v, _ in decided], [k for _, k in decided]),
        "same_model_on_one_side": sorted({*fixed, *always}),
    }


def agreement_of(groups: Sequence[Group], copies: int = 0) -> dict[str, Any]:
    """Repeats of a comparison against its first occurrence, and cycles among three responses of a prompt."""
    first_said: dict[tuple[str, str, str], str] = {}
    beats: dict[str, set[tuple[str, str]]] = defaultdict(set)
    same, different = copies, 0
    for group in groups:
        pair = pairs_of(group)
        if pair is None or len(group.responses) != 2:
            continue
        better, worse = (response_text(r) for r in pair)
        key = group.prompt_key()
        first, second = sorted((better, worse))
        said = first_said.get((key, first, second))
        if said is not None:
            same, different = same + (said == better), different + (said != better)
        else:
            first_said[key, first, second] = better
        beats[key].add((better, worse))
    found: dict[str, Any] = {}
    if same + different:
        interval = wilson(same, same + different)
        noise = noise_from_contradictions(different / (same + different))
        found |= {"repeated": same + different, "copies": copies, **_told(interval), "noise": noise}
    cycles = triples = 0
    for edges in beats.values():
        names = sorted({n for e in edges for n in e})
        for i, a in enumerate(names):
            for j, b in enumerate(names[i + 1 :], i + 1):
                for c in names[j + 1 :]:
                    arrows = [(x, y) in edges or (y, x) in edges for x, y in ((a, b), (b, c), (a, c))]
                    if all(arrows):
                        triples += 1
                        forward = {(a, b), (b, c), (c, a)} <= edges
                        cycles += forward or {(b, a), (c, b), (a, c)} <= edges
    return found | ({"triples": triples, "cycles": cycles} if triples else {})


def noise_from_contradictions(c: float) -> float | None:
    """Rate e of independent flips that makes two labels of one pair differ with probability c = 2 e (1 - e); None beyond 1/2."""
    return (1 - math.sqrt(1 - 2 * c)) / 2 if c <= 0.5 else None


def noise_bound(pairs: Sequence[tuple[Group, Any]], seeds: int = 1) -> dict[str, Any]:
    """Held-out accuracy of a linear model on words, by cross-fitting over prompts, and what it says at most of label noise."""
    from trueline.curating.conflict import descend, word_differences
    from trueline.curating.crossfit import cross_fit

    rows = thinned(pairs)
    keys = [g.prompt_key() for g, _ in rows]
    if len(set(keys)) < 2:
        return {}
    difference = word_differences([(response_text(a), response_text(b)) for _, (a, b) in rows])

    def train(inside: np.ndarray, seed: int, fold: int) -> np.ndarray:
        part = difference[inside]
        return descend(part, np.full(len(inside), 1 / len(inside)), np.zeros(part.shape[1]), 100)

    def score(weights: np.ndarray, held_out: np.ndarray) -> np.ndarray:
        return np.asarray(difference[held_out] @ weights).ravel()

    margin = cross_fit(keys, train, score, folds=5 if len(set(keys)) >= 5 else 2, seeds=seeds)[0]
    right = ((margin > 0) + 0.5 * (margin == 0)).tolist()
    interval = bootstrap_mean(right, keys, bounds=(0.0, 1.0))
    return {"word_model_accuracy": _told(interval), "noise_at_most": 1 - interval.low, "of": len(rows)}


def dimension_conflict(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """For every two aspects rated on both sides of pairs: of the pairs that both order, the share that they order oppositely.

    Aspects are columns NAME_chosen with NAME_rejected (or chosen_NAME with rejected_NAME), and rewards beside ranks as `label`.
    """
    names: dict[str, dict[str, str]] = defaultdict(dict)
    for column in dict.fromkeys(c for g in groups[:100] for c in g.extras):
        if match := _SIDE.match(column):
            names[match["name"] or match["aspect"]][match["side"] or match["other"]] = column
    aspects = {n: s for n, s in names.items() if len(s) == 2 and n not in ("logps", "rewards")}
    signs: dict[str, list[float]] = {n: [] for n in (*aspects, "label")}
    for group in groups:
        for name, sides in aspects.items():
            values = [group.extras.get(sides[s]) for s in ("chosen", "rejected")]
            known = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
            signs[name].append(float(np.sign(values[0] - values[1])) if known else 0.0)  # type: ignore[operator]
        signs["label"].append(1.0 if pairs_of(group) is not None else 0.0)
    if not aspects:
        return []
    found = []
    order = list(signs)
    for i, a in enumerate(order):
        for b in order[i + 1 :]:
            both = np.array(signs[a]) * np.array(signs[b])
            decided = int((both != 0).sum())
            if decided:
                found.append({"dimensions": [a, b], **_told(wilson(float((both < 0).sum()), decided)), "n": decided})
    return found


def lines(described: dict[str, Any]) -> list[str]:
    """The findings as sentences, most telling first."""
    said = []
    if length := described.get("length"):
        said.append(
            f"the better response is the longer one in {_percent(length)} of {length['n']} pairs of unequal length; it is "
            f"{length['median_ratio']:.2f} times as long (median)"
        )
    if position := described.get("position"):
        fixed = position["same_model_on_one_side"]
        who = (
            f"; but {', '.join(fixed)} stands on one side throughout, so this is that model's strength too"
            if fixed
            else ""
        )
        said.append(f"the second place wins {_percent(position)} of {position['n']} decided comparisons{who}")
    agreement = described.get("agreement", {})
    if "repeated" in agreement:
        noise = agreement["noise"]
        told = (
            f"label noise of about {noise:.1%} if flips are independent" if noise is not None else "worse than chance"
        )
        copies = (
            f" ({agreement['copies']} of them exact copies, which may be no second opinion)"
            if agreement["copies"]
            else ""
        )
        said.append(
            f"{agreement['repeated']} rows repeat a comparison{copies}; they agree in {_percent(agreement)}: {told}"
        )
    if "triples" in agreement:
        said.append(f"{agreement['cycles']} of {agreement['triples']} triples of responses form a cycle")
    if noise := described.get("label_noise"):
        accuracy = noise["word_model_accuracy"]
        said.append(
            f"a word model that saw other prompts is right in {_percent(accuracy)} of the pairs: label noise is at most "
            f"{noise['noise_at_most']:.0%} (if flips are uniform), and this much is to be had from words alone"
        )
    for row in sorted(described.get("dimensions", []), key=lambda r: -r["value"])[:5]:
        a, b = row["dimensions"]
        said.append(f"{a} and {b} order {_percent(row)} of {row['n']} pairs oppositely")
    if (near := described.get("near_duplicates")) and near["rows"]:
        said.append(
            f"{near['rows']} of {near['of']} rows are near-duplicates of an earlier one (largest group {near['largest']})"
        )
    mix = described.get("languages", {})
    if len(mix) > 1:
        said.append(
            "languages, roughly: "
            + ", ".join(f"{name} {share:.0%}" for name, share in list(mix.items())[:6] if share >= 0.005)
        )
    return said


def _share(values: Sequence[float], clusters: Sequence[str]) -> dict[str, Any]:
    if len(set(clusters)) < 2:
        return {"value": float(np.mean(values)) if values else None, "low": None, "high": None, "n": len(values)}
    return {**_told(bootstrap_mean(list(values), list(clusters), bounds=(0.0, 1.0))), "n": len(values)}


def _told(interval: Interval) -> dict[str, Any]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _percent(share: dict[str, Any]) -> str:
    value = "n/a" if share["value"] is None else f"{share['value']:.1%}"
    return value if share.get("low") is None else f"{value} [{share['low']:.1%}, {share['high']:.1%}]"
