"""Columns of behaviour: refusals, the same prompts under two conditions, outcomes of questions, changed texts, token ranks."""

from __future__ import annotations

import random
from typing import Any

import torch

from trueline.assemble import add_rewards
from trueline.engine.layout import laid_out
from trueline.engine.logprob import chunk_rows
from trueline.errors import TruelineError
from trueline.groups import Group, Response
from trueline.measure._perturbations import PERTURBATIONS
from trueline.measure._refusals import refuses
from trueline.measure.honesty import outcome
from trueline.measuring.activations import text_of, whole
from trueline.measuring.contract import Columns, Made, Request
from trueline.measuring.scorer import Scorer, judges_of, prompts, read_groups, rewards
from trueline.measuring.texts import rows_of
from trueline.randomness import derive

GIVEN_CHANGES = ("paraphrase", "translation")  # columns of the data that hold a changed text


def refusals(request: Request) -> Made:
    """The model's responses, the subset of each prompt where all have one, and a judge's rewards where one is given."""
    scorer = Scorer.open(request, request.model)
    groups = scorer.drawn(prompts(request, scorer), request.samples, "policy")
    rows = [(g, r) for g in groups for r in g.responses]
    made: Columns = {"text_R": [r.text for _, r in rows], "clusters": [g.prompt_key() for g, _ in rows]}
    if all(g.extras.get("subset") not in (None, "") for g in groups):
        made["subset_R"] = [str(g.extras["subset"]) for g, _ in rows]
    if request.feedback:
        judges = judges_of(request, scorer.loaded.tokenizer, at_most=1)
        add_rewards(groups, judges)
        made["judged_R"] = [x for row in rewards(groups, next(iter(judges))) for x in row]
    return [("", made)]


def labelled_rewards(request: Request) -> Made:
    """A judge's rewards of responses that people gave a thumb."""
    from trueline.measuring.pairs import _TextOnly

    groups = [_one(g, r.text) for g in read_groups(request) for r in g.responses if r.label is not None]
    labels = [float(r.label) for g in read_groups(request) for r in g.responses if r.label is not None]
    if not groups:
        raise TruelineError("detection needs rows with a label: prompt, completion and label (true or false).")
    judges = judges_of(request, _TextOnly(), at_most=1)
    add_rewards(groups, judges)
    return [("", {"score_R": [row[0] for row in rewards(groups, next(iter(judges)))], "label_R": labels})]


def conditions(request: Request) -> Made:
    """Share of samples that comply, prompt by prompt, under each wrapper of the data; the same random numbers in all."""
    rows = rows_of(request)
    wanted = [c for c in ("train", "deploy", "placebo_a", "placebo_b") if c in rows[0]]
    absent = [f"row {i + 1}: {c}" for i, row in enumerate(rows) for c in {"train", "deploy", *wanted} if not row.get(c)]
    if absent:
        raise TruelineError(
            f"compliance_gap answers each prompt in two wrappers, columns 'train' and 'deploy' (and 'placebo_a', "
            f"'placebo_b'); missing: {', '.join(sorted(absent)[:5])}."
        )
    scorer = Scorer.open(request, request.model)
    made: Columns = {}
    for column in wanted:
        drawn = _answered(request, scorer, [row[column] for row in rows], request.samples)
        made[f"{column}_P"] = [
            sum(bool(r.text.strip()) and not refuses(r.text) for r in g.responses) / len(g.responses) for g in drawn
        ]
    return [("", made)]


def answers(request: Request) -> Made:
    """Outcomes of every question before (model_b) and after (model) alignment."""
    if not request.model_b:
        raise TruelineError("honesty compares with the model before alignment: give it as --model-b FOLDER.")
    rows = rows_of(request)
    questions, gold = [], []
    for i, row in enumerate(rows):
        question = next((row[c] for c in ("question", "prompt") if row.get(c)), None)
        known = row.get("answer", row.get("answers"))
        known = [known] if isinstance(known, str) else known
        if question is None or not isinstance(known, list) or not known or not all(isinstance(a, str) for a in known):
            raise TruelineError(
                f"Row {i + 1} of {', '.join(request.data)}: expected a question (or prompt) and an answer, a text or a list "
                f"of texts; found {', '.join(row)}."
            )
        questions.append(question)
        gold.append(known)
    made: Columns = {}
    for side, path in (("before", request.model_b), ("after", request.model)):
        drawn = _answered(request, Scorer.open(request, path), questions, 1)
        found = [outcome(g.responses[0].text, known) for g, known in zip(drawn, gold, strict=True)]
        made[side] = [f["outcome"] for f in found]
        if side == "after":
            made["holds_gold"] = [f["holds_gold"] for f in found]
    return [("", made)]


def _answered(request: Request, scorer: Scorer, texts: list[Any], samples: int) -> list[Group]:
    """Fresh responses to these prompts, none of which is cut."""
    room = request.max_new_tokens or request.max_length // 2
    return scorer.drawn(whole(request, scorer.loaded, texts, response=room), samples, "policy")


def perturbed(request: Request) -> Made:
    """Scores of every text of the data and of changed copies: a judge's rewards, or the model's surprise."""
    if bool(request.feedback) == bool(request.model):
        raise TruelineError("robustness tests one scorer: give a judge by --feedback, or a model by --model, not both.")
    originals: list[tuple[Group, str]] = []
    changed: list[tuple[int, str, str]] = []  # number of the original, kind, text
    for group in read_groups(request):
        for response in group.responses:
            for kind, change in PERTURBATIONS.items():
                rng = random.Random(derive(request.seed, "perturbation", kind, len(originals)))
                changed.append((len(originals), kind, change(response.text, rng)))
            for kind in GIVEN_CHANGES:
                if len(group.responses) == 1 and isinstance(group.extras.get(kind), str):
                    changed.append((len(originals), kind, str(group.extras[kind])))
            originals.append((group, response.text))
    if not originals:
        raise TruelineError(f"robustness needs texts; {', '.join(request.data)} hold prompts without responses.")
    groups = [_one(group, text) for group, text in originals] + [_one(originals[i][0], text) for i, _, text in changed]
    scores = _judged(request, groups) if request.feedback else _surprise(request, groups)
    return [
        (
            "",
            {
                "score_R": [scores[i] for i, _, _ in changed],
                "perturbed_R": scores[len(originals) :],
                "kind_R": [kind for _, kind, _ in changed],
                "clusters": [originals[i][0].prompt_key() for i, _, _ in changed],
                "unchanged_R": [float(text == originals[i][1]) for i, _, text in changed],
            },
        )
    ]


def _one(group: Group, text: str) -> Group:
    messages = None if isinstance(group.prompt, str) else [{"role": "assistant", "content": text}]
    return Group(group.prompt, [Response(text, messages)], extras=dict(group.extras), origin=group.origin)


def _judged(request: Request, groups: list[Group]) -> list[float]:
    from trueline.measuring.pairs import _TextOnly

    judges = judges_of(request, _TextOnly(), at_most=1)
    add_rewards(groups, judges)
    return [row[0] for row in rewards(groups, next(iter(judges)))]


def _surprise(request: Request, groups: list[Group]) -> list[float]:
    """Mean negative log-prob of a token of each response."""
    scorer = Scorer.open(request, request.model)
    encoded = scorer.encoded(groups)
    if len(encoded) != len(groups):
        raise TruelineError(
            f"{len(groups) - len(encoded)} texts are empty or do not fit max_length {request.max_length}."
        )
    return [-sum(row[0]) / len(row[0]) for row in scorer.logps(encoded)]


@torch.no_grad()
def token_ranks(request: Request) -> Made:
    """Greedy responses of the model, and where each of its tokens stands in model_b's distribution."""
    if not request.model_b:
        raise TruelineError("token_shift compares with the base model: give it as --model-b FOLDER.")
    scorer, base = Scorer.open(request, request.model), Scorer.open(request, request.model_b)
    if scorer.loaded.vocabulary_hash != base.loaded.vocabulary_hash:
        raise TruelineError(
            f"'{request.model}' and '{request.model_b}' have different vocabularies, so ranks are not of the same tokens."
        )
    texts = [text_of(row, i, request) for i, row in enumerate(rows_of(request))]
    groups = _answered(request, scorer, texts, 1)
    made: Columns = {name: [] for name in ("rank_RT", "kl_RT", "base_logp_RT", "token_RT")}
    for cut, layout in laid_out(groups, request.token_budget, scorer.policy.device):
        own_N, other_N = (s.policy.head_states(layout) for s in (scorer, base))
        rows = chunk_rows(2 * len(scorer.loaded.tokenizer))  # two distributions stand in memory at once
        ranks, kls, logps = [], [], []
        for own, other, target in zip(own_N.split(rows), other_N.split(rows), layout.target_N.split(rows), strict=True):
            aligned = scorer.policy.head.logits(own).log_softmax(-1)
            plain = base.policy.head.logits(other).log_softmax(-1)
            said = plain.gather(-1, target[:, None])
            ranks.append(1 + (plain > said).sum(-1))
            kls.append((aligned.exp() * (aligned - plain)).sum(-1))
            logps.append(said.squeeze(-1))
        lengths = layout.length_R.tolist()
        for name, values in (("rank_RT", ranks), ("kl_RT", kls), ("base_logp_RT", logps)):
            made[name] += [part.tolist() for part in torch.cat(values).split(lengths)]
        decode = scorer.loaded.tokenizer.convert_ids_to_tokens
        made["token_RT"] += [decode(groups[i].responses[0].ids) for i in cut]
        made.setdefault("clusters", []).extend(groups[i].prompt_key() for i in cut)
    return [("", made)]
