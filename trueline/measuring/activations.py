"""Columns of hidden states: one vector a layer for each text, written to disk as they are made.

Memory holds one micro-batch of one layer: a hook on each block pools its output at once, and the pooled vectors go into
a file of their own without a name, mapped into memory, which the system removes with the last reference to it. Layer l below
the last is the output of block l, the last is after the final norm: transformers' `hidden_states[1:]`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from trueline.encode import Limits, encode
from trueline.engine.backbone import Backbone
from trueline.errors import TruelineError
from trueline.groups import Group
from trueline.measuring.contract import Made, Request
from trueline.measuring.tables import open_all
from trueline.measuring.texts import rows_of
from trueline.models import Loaded, load_frozen
from trueline.vocabulary import embedding_rows

POOLINGS = ("", "_mean")  # suffixes of the readings: last token, mean over tokens


def activations(request: Request) -> Made:
    """Activations of labelled texts at the last token and as a mean over tokens."""
    texts, labels, groups = labelled(request)
    tables = pooled_states(request, request.model, texts)
    more = {"label_N": labels} | ({"group_N": groups} if groups else {})
    return [(suffix, {"activation_NLD": tables[i], **more}) for i, suffix in enumerate(POOLINGS)]


def paired_activations(request: Request) -> Made:
    """Activations of the same texts in model and in model_b."""
    if not request.model_b:
        raise TruelineError(f"{request.name} compares two models: give the other one as --model-b FOLDER.")
    texts = [text_of(row, i, request) for i, row in enumerate(rows_of(request))]
    own = pooled_states(request, request.model, texts)
    other = pooled_states(request, request.model_b, texts)
    return [
        (suffix, {"activation_NLD": own[i], "reference_activation_NLD": other[i]}) for i, suffix in enumerate(POOLINGS)
    ]


def labelled(request: Request) -> tuple[list[Any], list[Any], list[Any] | None]:
    """Texts, labels, and groups where every row has one. Without a column `label`, several files are the sets."""
    rows, files = [], []
    for table in open_all(request):
        rows += table.rows
        files += [str(table.path)] * len(table.rows)
    kept = _spread(files if not all("label" in r for r in rows) else [r["label"] for r in rows], request.prompts)
    rows, files = [rows[i] for i in kept], [files[i] for i in kept]
    texts = [text_of(row, i, request) for i, row in enumerate(rows)]
    if any("label" in row for row in rows):
        bad = next((i for i, row in enumerate(rows) if row.get("label") in (None, "")), None)
        if bad is not None:
            raise TruelineError(
                f"Row {bad + 1} of {', '.join(request.data)} has no 'label'. Fill it in, or leave it out."
            )
        labels = [row["label"] for row in rows]
    elif len(set(files)) > 1:
        labels = files
    else:
        raise TruelineError(
            f"{request.name} needs two labelled sets: a column 'label' beside the text, or a file for each set "
            f"(--data SAFE UNSAFE); found {', '.join(rows[0])} in one file."
        )
    grouped = all(row.get("group") not in (None, "") for row in rows)
    return texts, labels, [row["group"] for row in rows] if grouped else None


def _spread(labels: Sequence[Any], most: int | None) -> list[int]:
    """The first rows of every label in turn, at most so many in all: a file is often sorted by label."""
    if most is None or len(labels) <= most:
        return list(range(len(labels)))
    by_label: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        by_label.setdefault(repr(label), []).append(i)
    turns = sorted((turn, order, i) for order, own in enumerate(by_label.values()) for turn, i in enumerate(own))
    return sorted(i for _, _, i in turns[:most])


def text_of(row: dict[str, Any], number: int, request: Request) -> Any:
    """A row's text, or its prompt as text or messages."""
    for name in ("text", "prompt"):
        value = row.get(name)
        if (isinstance(value, str) and value.strip()) or (name == "prompt" and isinstance(value, list) and value):
            return value
    raise TruelineError(
        f"Row {number + 1} of {', '.join(request.data)} has no text; expected a column 'text' or 'prompt'; "
        f"found {', '.join(row)}."
    )


def pooled_states(
    request: Request, path: str | None, texts: Sequence[Any], *, template: bool = True
) -> tuple[Any, Any]:
    """(last token, mean over tokens) of every text at every layer: two arrays [N, L, D] on disk, float32.

    A text is a prompt: it goes through the chat template where the model has one, with what opens the answer, unless
    `template` is False. Text is never cut; one that does not fit max_length is an error.
    """
    if not path:
        raise TruelineError(f"{request.name} needs a model: --model FOLDER.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_frozen(path, device, offline=request.offline)
    ids = [list(g.prompt_ids or ()) for g in whole(request, loaded, texts, template=template)]
    backbone = Backbone(loaded.model, "lm")
    shape = (len(ids), backbone.layers, backbone.width)
    last, mean = mapped(shape), mapped(shape)
    for cut in batches([len(row) for row in ids], request.token_budget):
        for layer, (at_last, over_all) in enumerate(_forward(backbone, [ids[i] for i in cut], device)):
            last[cut, layer], mean[cut, layer] = at_last, over_all
    return last, mean


def whole(
    request: Request, loaded: Loaded, texts: Sequence[Any], *, response: int = 1, template: bool = True
) -> list[Group]:
    """Texts as encoded prompts, none of them cut, with room for a response of so many tokens."""
    chat = template and loaded.chat_template is not None
    groups = [
        Group([{"role": "user", "content": t}] if chat and isinstance(t, str) else t, origin=f"text {i + 1}")
        for i, t in enumerate(texts)
    ]
    limits = Limits(request.max_length, max_response_length=response, truncation="drop")
    vocabulary = embedding_rows(loaded.model)
    kept, audit = encode(groups, loaded.tokenizer, limits, eos_ids=loaded.eos_ids, vocabulary=vocabulary)
    if len(kept) != len(texts):
        raise TruelineError(
            f"{len(texts) - len(kept)} of {len(texts)} texts cannot be read whole ({audit.dropped}). max_length is "
            f"{request.max_length}: raise it, or leave those rows out."
        )
    return kept


def mapped(shape: tuple[int, ...]) -> Any:
    """A float32 array in a file that has no name."""
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)  # type: ignore[call-overload]


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Row numbers by micro-batch, rows of like length together, so that padding stays within the token budget."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    cut: list[int] = []
    for i in order:
        if cut and lengths[i] * (len(cut) + 1) > budget:
            yield cut
            cut = []
        cut.append(i)
    if cut:
        yield cut


@torch.no_grad()
def _forward(backbone: Backbone, rows: list[list[int]], device: str) -> list[tuple[Any, Any]]:
    """Both poolings of every layer, each [R, D], for one padded micro-batch."""
    ids_RT = pad_sequence([torch.tensor(r) for r in rows], batch_first=True).to(device)
    length_R = torch.tensor([len(r) for r in rows], device=device)
    real_RT = torch.arange(ids_RT.shape[1], device=device)[None] < length_R[:, None]

    def pool(state_RTD: Tensor) -> tuple[Any, Any]:
        wide = state_RTD.float()
        total = (wide * real_RT[..., None]).sum(1)
        at_last = wide[torch.arange(len(rows), device=device), length_R - 1]
        return at_last.cpu().numpy(), (total / length_R[:, None]).cpu().numpy()

    with backbone.evaluating(), backbone.plain_attention(), watched(backbone.decoder_layers()[:-1], pool) as seen:
        final = backbone.body(input_ids=ids_RT, attention_mask=real_RT.long(), use_cache=False, return_dict=True)
    return [*seen, pool(final.last_hidden_state)]


@contextmanager
def watched(layers: Sequence[nn.Module], pool: Any) -> Iterator[list[Any]]:
    """What `pool` makes of each layer's output during a block, in order of the layers."""
    seen: list[Any] = []

    def note(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(pool(output[0] if isinstance(output, tuple) else output))

    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
