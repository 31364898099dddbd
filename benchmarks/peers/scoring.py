"""A length-sorted padded `transformers` loop that scores a preference file, for `make bench`. Anyone may improve this file.

Rows are sorted by length and cut into batches by padded tokens; they are padded on the left, so that `logits_to_keep` can
keep the head to the positions of the responses; the reference log-prob of a response is the sum over its tokens.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.meter import Meter
from benchmarks.workload import Sizes, read_rows

TOKENS = 4096  # padded tokens of a batch: as many as our default micro-batch


def run(folder: Path, sizes: Sizes, meter: Meter) -> dict[str, float]:
    """Log-probs of both responses of every pair; units are pairs. ranking: pairs whose chosen response is likelier."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    meter.loaded()
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    end = tokenizer.eos_token_id
    pairs = read_rows(folder / "scored_pairs.jsonl")

    @torch.no_grad()
    def score() -> list[float]:
        rows = []
        for pair in pairs:
            prompt = tokenizer(pair["prompt"])["input_ids"]
            rows += [(prompt, tokenizer(pair[side])["input_ids"] + [end]) for side in ("chosen", "rejected")]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
        logp = [0.0] * len(rows)
        while order:
            batch = [order.pop()]
            longest = sum(map(len, rows[batch[0]]))
            while order and (len(batch) + 1) * longest <= TOKENS:
                batch.append(order.pop())
            ids_BT = torch.full((len(batch), longest), end)
            mask_BT = torch.zeros_like(ids_BT)
            for b, i in enumerate(batch):
                row = rows[i][0] + rows[i][1]
                ids_BT[b, longest - len(row) :] = torch.tensor(row)
                mask_BT[b, longest - len(row) :] = 1
            keep = max(len(rows[i][1]) for i in batch)
            logits_BKV = model(input_ids=ids_BT, attention_mask=mask_BT, logits_to_keep=keep + 1).logits[:, :-1]
            logp_BK = logits_BKV.log_softmax(-1).gather(-1, ids_BT[:, -keep:, None]).squeeze(-1)
            for b, i in enumerate(batch):
                logp[i] = float(logp_BK[b, -len(rows[i][1]) :].sum())
        return logp

    with meter.region():
        logp = score()
    ranking = sum(w > r for w, r in zip(logp[::2], logp[1::2], strict=True))
    return {
        "units": len(pairs),
        "ranking": ranking,
        "logp": sum(logp),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
