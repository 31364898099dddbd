"""Columns that a judge must be asked for: verdicts in both orders, split and merged ones, matches and tournaments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trueline.errors import TruelineError
from trueline.feedback import _verdict
from trueline.feedback._asker import open_asker
from trueline.feedback._judging import Asker
from trueline.feedback._specification import parse
from trueline.feedback._split_merge import SplitMerge
from trueline.feedback.contract import FeedbackContext
from trueline.groups import Group, Prompt, Response, prompt_text, response_text
from trueline.measuring.contract import Columns, Made, Request
from trueline.measuring.pairs import _TextOnly
from trueline.measuring.scorer import judges_of, read_groups
from trueline.measuring.tables import open_all
from trueline.pairing import order_scores
from trueline.randomness import derive
from trueline.registry import load
from trueline.tournament import Compare, Match, Pairing, anchored, round_robin, single_elimination


@dataclass
class Pair:
    """Two responses to a prompt. human: A's share, NaN where nobody said. swapped: whether A is the later one in the data."""

    group: Group
    a: Response
    b: Response
    human: float
    swapped: bool

    @property
    def question(self) -> tuple[str, str, str]:
        return prompt_text(self.group.prompt), response_text(self.a), response_text(self.b)


def asker_of(request: Request) -> Asker:
    """The one judge of the request, for questions in words."""
    if len(request.feedback) != 1 or parse(request.feedback[0]).name != "judge":
        raise TruelineError(
            f"{request.name} asks one judge in words: --feedback judge:MODEL@URL or judge:PATH; found "
            f"{', '.join(request.feedback) or 'none'}."
        )
    return open_asker(request.name, parse(request.feedback[0]).argument, _context(request))


def _context(request: Request) -> FeedbackContext:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return FeedbackContext(None, request.token_budget, "exact", device, request.offline, request.seed)


# ---- verdicts on pairs -----------------------------------------------------------------------------------------------


def verdicts(request: Request) -> Made:
    """Verdicts in both orders on preference data, with people's preferences, lengths, authors and paraphrases."""
    asker, pairs = asker_of(request), _pairs(request)
    return [("", _wanted(request, _verdict_columns(pairs, asker, _argument(request))))]


def portia(request: Request) -> Made:
    """Verdicts in both orders, plain and after splitting and merging."""
    asker, pairs = asker_of(request), _pairs(request)
    judged = SplitMerge(asker).judge([p.question for p in pairs])
    columns = _people(pairs)
    for name, pick in (("", [c.plain for c in judged]), ("portia_", [c.final for c in judged])):
        columns[f"{name}forward_P"] = [_known(f) for f, _ in pick]
        columns[f"{name}backward_P"] = [_known(b) for _, b in pick]
    return [("", columns)]


def _verdict_columns(pairs: Sequence[Pair], asker: Asker, judge: str) -> Columns:
    both = _both_orders(asker, [p.question for p in pairs])
    columns = _people(pairs) | {
        "forward_P": [_known(f) for f, _ in both],
        "backward_P": [_known(b) for _, b in both],
        "length_P": [len(p.question[1]) for p in pairs],
        "other_length_P": [len(p.question[2]) for p in pairs],
    }
    if all({"chosen_model", "rejected_model"} <= p.group.extras.keys() for p in pairs):
        columns["own_P"] = [_own(p, judge) for p in pairs]
    if any(p.group.extras.get("paraphrases") for p in pairs):
        columns["reworded_P"] = _reworded(pairs, both, asker)
    return columns


def _both_orders(asker: Asker, questions: Sequence[tuple[str, str, str]]) -> list[tuple[float | None, float | None]]:
    """Share of whoever stands first, as it stands and exchanged."""
    asked = [
        _verdict.fill(_verdict.PAIRWISE, prompt=prompt, first=first, second=second)
        for prompt, a, b in questions
        for first, second in ((a, b), (b, a))
    ]
    answers = asker.ask(asked) if asked else []
    shares = [None if answer is None else _verdict.comparison(answer) for answer in answers]
    return list(zip(shares[::2], shares[1::2], strict=True))


def _reworded(
    pairs: Sequence[Pair], plain: Sequence[tuple[float | None, float | None]], asker: Asker
) -> list[list[float]]:
    """A's share over both orders under the data's wording of the prompt and under each paraphrase of it."""
    asked = []
    for p in pairs:
        wordings = p.group.extras.get("paraphrases") or []
        if not isinstance(wordings, list) or not all(isinstance(w, str) for w in wordings):
            raise TruelineError(f"{p.group.origin}: 'paraphrases' is {wordings!r}; expected a list of texts.")
        asked.append([(wording, *p.question[1:]) for wording in wordings])
    answers = iter(_both_orders(asker, [q for own in asked for q in own]))
    return [
        [_known(_verdict.both_orders(*both)) for both in (first, *(next(answers) for _ in own))]
        for first, own in zip(plain, asked, strict=True)
    ]


def _pairs(request: Request) -> list[Pair]:
    """Every two different responses of every group; which of them is A is drawn, so that no side is always the better."""
    found = []
    for g, group in enumerate(read_groups(request)):
        scores = order_scores(group)
        for i in range(len(group.responses)):
            for j in range(i + 1, len(group.responses)):
                if response_text(group.responses[i]) == response_text(group.responses[j]):
                    continue
                swapped = derive(request.seed, "measure", "side", g, i, j) % 2 == 1
                a, b = (j, i) if swapped else (i, j)
                mine, theirs = scores[a], scores[b]
                human = math.nan if mine is None or theirs is None else (1 + (mine > theirs) - (mine < theirs)) / 2
                found.append(Pair(group, group.responses[a], group.responses[b], human, swapped))
    if not found:
        raise TruelineError(f"{request.name}: the data hold no two different responses to one prompt.")
    return found


def _people(pairs: Sequence[Pair]) -> Columns:
    columns: Columns = {"clusters": [p.group.prompt_key() for p in pairs]}
    if any(not math.isnan(p.human) for p in pairs):
        columns["human_P"] = [p.human for p in pairs]
    return columns


def _own(pair: Pair, judge: str) -> str:
    """Which response the judge's model wrote. The chosen one is the earlier of the group where the data name both."""
    chosen, rejected = (str(pair.group.extras[f"{side}_model"]) == judge for side in ("chosen", "rejected"))
    first, second = (rejected, chosen) if pair.swapped else (chosen, rejected)
    return {(True, True): "both", (True, False): "first", (False, True): "second"}.get((first, second), "neither")


def _argument(request: Request) -> str:
    """The judge's model: what stands before the URL, or the folder."""
    return parse(request.feedback[0]).argument.partition("@http")[0]


def _wanted(request: Request, columns: Columns) -> Columns:
    """What the measure reads of them."""
    import inspect

    known = inspect.signature(load("measure", request.name).call).parameters
    return {name: values for name, values in columns.items() if name in known}


def _known(share: float | None) -> float:
    return math.nan if share is None else share


# ---- matches between systems -----------------------------------------------------------------------------------------


def matches(request: Request) -> Made:
    """Every two systems on every prompt, or with model_b every system against that one."""
    outputs = _outputs(request)
    compare = _comparing(request, outputs)
    n, prompts = len(outputs.systems), len(outputs.prompts)
    if request.model_b is None:
        return [("", outputs.log(round_robin(n, prompts, compare, seed=request.seed), request))]
    if request.model_b not in outputs.systems:
        raise TruelineError(
            f"{request.name}: --model-b '{request.model_b}' is none of the systems {', '.join(outputs.systems)}."
        )
    anchor = outputs.systems.index(request.model_b)
    return [("", outputs.log(anchored(n, prompts, compare, anchor=anchor, seed=request.seed), request))]


def tournament(request: Request) -> Made:
    """A single elimination between all systems on every prompt."""
    outputs = _outputs(request)
    played = single_elimination(
        len(outputs.systems), len(outputs.prompts), _comparing(request, outputs), seed=request.seed
    )
    return [("", outputs.log(played, request))]


@dataclass
class _Outputs:
    """What every system said to every prompt: texts [prompt][system]."""

    systems: list[str]
    prompts: list[Prompt]
    texts: list[list[str]]

    def log(self, played: Sequence[Match], request: Request) -> Columns:
        """Matches as columns."""
        columns: Columns = {
            "first_K": [self.systems[m.first] for m in played],
            "second_K": [self.systems[m.second] for m in played],
            "share_K": [m.share for m in played],
            "clusters": [m.prompt for m in played],
            "advanced_K": [self.systems[m.advanced] for m in played],
        }
        return _wanted(request, columns)


def _outputs(request: Request) -> _Outputs:
    """From rows of a prompt with all `outputs`, or rows of prompt, system and response."""
    if request.model:
        raise TruelineError(f"{request.name} compares outputs that are in the data; leave --model out.")
    said: dict[str, dict[str, str]] = {}
    prompts: dict[str, Prompt] = {}
    for table in open_all(request):
        for number, row in zip(table.numbers, table.rows, strict=True):
            where = f"{table.path}:{number}"
            prompt = row.get("prompt")
            if not isinstance(prompt, (str, list)) or not prompt:
                raise TruelineError(f"{where}: expected 'prompt'; found {', '.join(row)}.")
            key = Group(prompt).prompt_key()
            if key not in prompts and len(prompts) == request.prompts:
                continue
            prompts.setdefault(key, prompt)
            for system, text in _said(row, where).items():
                if system in said.setdefault(key, {}):
                    raise TruelineError(f"{where}: '{system}' has an output to this prompt already.")
                said[key][system] = text
    systems = list(dict.fromkeys(system for own in said.values() for system in own))
    for key, own in said.items():
        if missing := [s for s in systems if s not in own]:
            raise TruelineError(
                f"{', '.join(request.data)}: {', '.join(missing[:3])} said nothing to {str(prompts[key])[:60]!r}. Every "
                "system needs an output to every prompt."
            )
    return _Outputs(systems, list(prompts.values()), [[said[key][s] for s in systems] for key in prompts])


def _said(row: dict[str, Any], where: str) -> dict[str, str]:
    found = row.get("outputs")
    if found is None and "system" in row and "response" in row:
        found = {str(row["system"]): row["response"]}
    if not isinstance(found, dict) or not found or not all(isinstance(t, str) for t in found.values()):
        raise TruelineError(
            f"{where}: expected 'outputs' (an object of system to text), or 'system' and 'response'; found {', '.join(row)}."
        )
    return {str(system): text for system, text in found.items()}


def _comparing(request: Request, outputs: _Outputs) -> Compare:
    """Any judge as a comparison: by its preferences where it compares, by its rewards where it scores."""
    judges = judges_of(request, _TextOnly(), at_most=1)
    (judge,) = judges.values()

    def compare(pairings: list[Pairing]) -> list[float | None]:
        duels = [
            Group(outputs.prompts[p], [Response(text=outputs.texts[p][a]), Response(text=outputs.texts[p][b])])
            for p, a, b in pairings
        ]
        if duels:
            judge(duels)
        return [_share(duel) for duel in duels]

    return compare


def _share(duel: Group) -> float | None:
    """The first response's share."""
    if duel.preferences is not None:
        return duel.preferences[0][1]
    mine, theirs = (r.reward for r in duel.responses)
    return None if mine is None or theirs is None else (1 + (mine > theirs) - (mine < theirs)) / 2
