"""Columns that compare a model's words with a corpus: token ids for suffix matching, nearest training texts of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trueline.errors import TruelineError
from trueline.groups import Group
from trueline.measure.extraction import indel_similarity
from trueline.measuring.activations import pooled_states, text_of, whole
from trueline.measuring.contract import Columns, Made, Request
from trueline.measuring.scorer import Scorer
from trueline.measuring.tables import open_all

MARK = "\ue000query\ue001"  # private use: in no template
ROWS = 1024


def token_corpus(request: Request) -> Made:
    """Ids of the corpus's documents (rows with `text`) and of responses: rows with `response`, or the model's to `prompt`."""
    rows = [row for table in open_all(request) for row in table.rows]
    documents = [r for r in rows if isinstance(r.get("text"), str) and r["text"]]
    given = [r["response"] for r in rows if isinstance(r.get("response"), str) and r["response"]]
    asked = [r["prompt"] for r in rows if r.get("prompt") and not r.get("response") and not r.get("text")]
    if not documents or not (given or asked):
        raise TruelineError(
            f"{request.name} needs a corpus (rows with 'text'; 'unsafe' and 'conflict' may stand beside it) and rows with a "
            f"'response' or with a 'prompt' to answer; found {len(documents)}, {len(given)} and {len(asked)}."
        )
    scorer = Scorer.open(request, request.model)
    tokenizer = scorer.loaded.tokenizer

    def ids(text: str) -> Any:
        return np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)

    responses = [ids(text) for text in given][: request.prompts]
    if asked:
        room = request.max_new_tokens or request.max_length // 2
        groups = whole(request, scorer.loaded, asked[: request.prompts], response=room)
        stops = set(scorer.loaded.eos_ids)
        for group in scorer.drawn(groups, request.samples, "policy"):
            responses += [[i for i in r.ids or () if i not in stops] for r in group.responses]
    made: Columns = {"response_RT": [r for r in responses if len(r)], "corpus_DT": [ids(r["text"]) for r in documents]}
    for name in ("unsafe", "conflict"):
        if all(r.get(name) is not None for r in documents):
            made[f"{name}_D"] = [float(r[name]) for r in documents]
    return [("", {**made, "decode": tokenizer.decode})]


def extracted(request: Request) -> Made:
    """Samples from the bare chat template, and the training and control texts nearest to each."""
    training, control = _parts(request)
    scorer = Scorer.open(request, request.model)
    bare = Group("", prompt_ids=opening(scorer.loaded), origin="the bare template")
    drawn = scorer.drawn([bare], request.samples, "policy")[0].responses
    samples = [r.text for r in drawn if r.text.strip()]
    if not samples:
        raise TruelineError(
            "Every sample from the bare template is empty. Draw more (--samples), or at a higher temperature."
        )
    embedder = request.model_b or request.model
    said = _embedded(request, embedder, samples)
    similarity, nearest = _nearest(said, _embedded(request, embedder, training))
    made: Columns = {
        "similarity_S": similarity,
        "nearest_S": nearest,
        "string_S": [indel_similarity(s, training[i]) for s, i in zip(samples, nearest, strict=True)],
        "text_S": samples,
        "nearest_text_S": [training[i] for i in nearest],
        "training_texts_S": [len(training)] * len(samples),
    }
    made["control_similarity_S"] = _nearest(said, _embedded(request, embedder, control))[0]
    return [("", made)]


def opening(loaded: Any) -> list[int]:
    """The tokens that a chat template writes before a user's words; BOS or EOS where there is no template."""
    if loaded.chat_template is None:
        bos = loaded.tokenizer.bos_token_id
        return [bos if bos is not None else loaded.eos_ids[0]]
    text = loaded.tokenizer.apply_chat_template([{"role": "user", "content": MARK}], tokenize=False)
    before, found, _ = text.partition(MARK)
    if not found or not before:
        raise TruelineError(
            "The chat template changes a user's words or writes nothing before them: nothing to sample from."
        )
    return list(loaded.tokenizer(before, add_special_tokens=False)["input_ids"])


def _parts(request: Request) -> tuple[list[str], list[str]]:
    """Training and control texts: by the column `part`, or the first file and the others."""
    tables = open_all(request)
    rows = [(row, table is tables[0]) for table in tables for row in table.rows]
    named = all(row.get("part") in ("train", "control") for row, _ in rows)
    training: list[str] = []
    control: list[str] = []
    for i, (row, first) in enumerate(rows):
        text = text_of(row, i, request)
        if isinstance(text, list):
            text = next((str(m.get("content")) for m in text if m.get("role") == "user"), "")
        (training if (row["part"] == "train" if named else first) else control).append(text)
    if not training or not control:
        raise TruelineError(
            f"{request.name} needs training texts and a control that was never trained on: --data TRAIN CONTROL, or a column "
            f"'part' with train and control; found {len(training)} and {len(control)} texts."
        )
    return training[: request.prompts], control[: request.prompts]


def _embedded(request: Request, path: str | None, texts: Sequence[str]) -> Any:
    """Mean states of the last layer, of length 1."""
    points = np.asarray(pooled_states(request, path, texts, template=False)[1][:, -1], dtype=np.float64)
    return points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)


def _nearest(points: Any, others: Any) -> tuple[list[float], list[int]]:
    """Largest cosine of each point to the others, and whose it is; a block of points at a time."""
    best, where = [], []
    for at in range(0, len(points), ROWS):
        cosine = points[at : at + ROWS] @ others.T
        index = cosine.argmax(1)
        where += index.tolist()
        best += np.minimum(cosine[np.arange(len(index)), index], 1.0).tolist()
    return best, where
