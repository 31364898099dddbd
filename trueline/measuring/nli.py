"""Entailment between a context's chunks and a claim's sentences by any NLI model on disk, and a trainer for a small one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from trueline.errors import TruelineError
from trueline.measuring.contract import Made, Request
from trueline.measuring.texts import rows_of

WORDS = 350  # of a chunk, as in the authors' code
ALIGNED = ("entailment", "aligned", "entail", "consistent", "supported")
Scores = Callable[[Sequence[tuple[str, str]]], list[float]]

_END = re.compile(r"(?<=[.!?。！？])[\"'”’)\]]*\s+(?=[\"'“‘(\[]?[^\W_a-z])|(?<=[。！？])|\n+")
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|etc|e\.g|i\.e|No|Fig|Inc|Ltd|U\.S)|\b[A-Z])\.$")


def sentences(text: str) -> list[str]:
    """Sentences by their end marks, not after a title, an initial or a common abbreviation; line breaks end one, too."""
    parts: list[str] = []
    for piece in (p.strip() for p in _END.split(text) if p and p.strip()):
        if parts and _ABBREVIATION.search(parts[-1]):
            parts[-1] += f" {piece}"
        else:
            parts.append(piece)
    return parts


def chunks(context: str) -> list[str]:
    """n = floor(words / 350) + 1 chunks' worth of sentences each: max(floor(sentences / n), 1) sentences a chunk."""
    own = sentences(context)
    size = max(len(own) // (len(context.split()) // WORDS + 1), 1)
    return [" ".join(own[i : i + size]) for i in range(0, len(own), size)]


def tables(pairs: Iterable[tuple[str, str]], score: Scores, *, split: bool = True) -> list[list[list[float]]]:
    """For every (context, claim) the table [sentence][chunk] of p(aligned). split=False: the whole claim against the whole context."""
    asked: list[tuple[str, str]] = []
    shapes: list[tuple[int, int]] = []
    for number, (context, claim) in enumerate(pairs):
        lines, parts = (sentences(claim), chunks(context)) if split else ([claim.strip()], [context.strip()])
        if not lines or not parts or not lines[0] or not parts[0]:
            raise TruelineError(
                f"Row {number + 1}: the {'claim' if not lines or not lines[0] else 'context'} is empty."
            )
        asked += [(part, line) for line in lines for part in parts]
        shapes.append((len(lines), len(parts)))
    values = iter(score(asked))
    return [[[next(values) for _ in range(c)] for _ in range(s)] for s, c in shapes]


def entailment(request: Request) -> Made:
    """Tables of p(aligned) for rows with `context` and `claim` (and `label`), by the model as an NLI classifier."""
    if not request.model:
        raise TruelineError(f"{request.name} needs an NLI classifier: --model FOLDER.")
    rows = rows_of(request)
    for i, row in enumerate(rows):
        if not all(isinstance(row.get(c), str) and row[c].strip() for c in ("context", "claim")):
            raise TruelineError(f"Row {i + 1} of {', '.join(request.data)}: expected texts 'context' and 'claim'.")
    score = opened(request.model, request.token_budget, offline=request.offline)
    made: dict[str, Any] = {"aligned_RSC": tables([(r["context"], r["claim"]) for r in rows], score)}
    if all(r.get("label") is not None for r in rows):
        made["label_R"] = [float(r["label"]) for r in rows]
    return [("", made)]


def opened(path: str, token_budget: int = 4096, *, offline: bool = False) -> Scores:
    """p(aligned | chunk, sentence) of a sequence classifier. Which label that is is read from its label names.

    Raises TruelineError where no label is called entailment or the like, and where a pair does not fit the model.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=offline)
        model: Any = AutoModelForSequenceClassification.from_pretrained(path, local_files_only=offline).eval()
    except (OSError, ValueError) as error:
        raise TruelineError(f"'{path}' does not open as a sequence classifier: {str(error)[:200]}") from error
    return scorer_of(model, tokenizer, token_budget)


def scorer_of(model: Any, tokenizer: Any, token_budget: int = 4096) -> Scores:
    """The same for a model in memory."""
    label = aligned_label(model.config.id2label)
    longest = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 20) - 2

    @torch.no_grad()
    def score(pairs: Sequence[tuple[str, str]]) -> list[float]:
        encoded = [_ids(tokenizer, a, b, longest) for a, b in pairs]
        order = sorted(range(len(pairs)), key=lambda i: len(encoded[i]["input_ids"]))
        found = [0.0] * len(pairs)
        cut: list[int] = []
        for i in order:
            if cut and len(encoded[i]["input_ids"]) * (len(cut) + 1) > token_budget:
                _fill(model, tokenizer, encoded, cut, label, found)
                cut = []
            cut.append(i)
        _fill(model, tokenizer, encoded, cut, label, found)
        return found

    return score


def _fill(model: Any, tokenizer: Any, encoded: list[Any], cut: list[int], label: int, found: list[float]) -> None:
    if cut:
        batch = tokenizer.pad([encoded[i] for i in cut], return_tensors="pt").to(model.device)
        for i, p in zip(cut, model(**batch).logits.float().softmax(-1)[:, label].tolist(), strict=True):
            found[i] = p


def aligned_label(names: dict[int, str]) -> int:
    for number, name in names.items():
        if str(name).lower() in ALIGNED:
            return int(number)
    raise TruelineError(
        f"None of the model's labels is called entailment or aligned; found {', '.join(map(str, names.values()))}. Name it in "
        "the model's config.json (id2label)."
    )


def _ids(tokenizer: Any, context: str, claim: str, longest: int) -> Any:
    found = tokenizer(context, claim)
    if len(found["input_ids"]) > longest:
        raise TruelineError(
            f"A chunk and a sentence have {len(found['input_ids'])} tokens together, and the model reads {longest}: "
            f"{claim[:60]!r}. Shorten its longest sentences; cutting the context alone would change the answer unseen."
        )
    return found


NLI = {"aligned": 0, "contradict": 1, "neutral": 2}


def train_nli(
    rows: Sequence[dict[str, Any]],
    model: Any,
    tokenizer: Any,
    output: str | Path | None = None,
    *,
    epochs: int = 3,
    batch_size: int = 16,
    learning_rate: float = 1e-4,
    seed: int = 0,
) -> list[float]:
    """Train a classifier of three labels (aligned, contradict, neutral) on rows of any task; returns the loss of every step.

    Rows have `context`, `claim` and one label: `nli` (one of the three names: cross entropy / ln 3), `binary` (true or false: whether
    aligned, cross entropy of P(aligned) / ln 2) or `score` (0 to 1: squared error of P(aligned)). AlignScore has a head for each kind
    and sums their losses with weight 1; here one head of three labels learns from all, so that a plain NLI folder comes out.
    """
    if not rows or model.config.num_labels != 3:
        raise TruelineError(
            f"{len(rows)} rows and a model of {model.config.num_labels} labels; expected rows and 3 labels."
        )
    longest = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 20) - 2
    encoded = [_ids(tokenizer, r["context"], r["claim"], longest) for r in rows]
    kinds = [_kind(r, i) for i, r in enumerate(rows)]
    model.config.id2label = {i: name for name, i in NLI.items()}
    model.config.label2id = dict(NLI)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(rows), generator=generator).tolist()
        for at in range(0, len(order), batch_size):
            cut = order[at : at + batch_size]
            batch = tokenizer.pad([encoded[i] for i in cut], return_tensors="pt").to(model.device)
            logp = model(**batch).logits.float().log_softmax(-1)
            loss = sum((nli_loss(logp[j], *kinds[i]) for j, i in enumerate(cut)), logp.new_zeros(())) / len(cut)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            losses.append(float(loss.detach()))
    model.eval()
    if output is not None:
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    return losses


def nli_loss(logp_3: torch.Tensor, kind: str, value: float) -> torch.Tensor:
    """Loss of one row, by the kind of its label."""
    if kind == "nli":
        return -logp_3[int(value)] / math.log(3)
    p = logp_3[NLI["aligned"]].exp().clamp(1e-7, 1 - 1e-7)
    if kind == "binary":
        return functional.binary_cross_entropy(p, p.new_tensor(value)) / math.log(2)
    return (p - value) ** 2


def _kind(row: dict[str, Any], number: int) -> tuple[str, float]:
    held = [k for k in ("nli", "binary", "score") if row.get(k) is not None]
    if len(held) != 1 or (held[0] == "nli" and row["nli"] not in NLI):
        raise TruelineError(
            f"Row {number + 1}: expected one label, nli ({', '.join(NLI)}), binary or score; found {held}."
        )
    value = float(NLI[row["nli"]] if held[0] == "nli" else row[held[0]])
    if held[0] != "nli" and not 0 <= value <= 1:
        raise TruelineError(f"Row {number + 1}: '{held[0]}' is {value:g}; expected 0 to 1.")
    return held[0], value
