"""`transformers.generate` at its best legal settings, for `make bench`. Anyone may improve this file.

As many rows at once as on our side, prompts sorted by length so that padding is small, the dynamic cache (a static cache
without compilation changes nothing on a CPU, continuous batching is 2 to 3 times slower there).
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.meter import Meter
from benchmarks.workload import Sizes, end_tokens, read_rows


def run(folder: Path, sizes: Sizes, meter: Meter) -> dict[str, float]:
    """Sample every prompt; units are tokens of responses, the end token included, padding not."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    meter.loaded()
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
    prompts = [r["prompt"] for r in read_rows(folder / "prompts.jsonl")[: sizes.sampled_prompts]]
    prompts.sort(key=lambda p: len(tokenizer(p)["input_ids"]))
    ends = end_tokens(sizes)
    is_end = torch.zeros(sizes.vocabulary, dtype=torch.bool)
    is_end[ends] = True
    at_once = max(1, sizes.rows // sizes.samples)
    batches = [
        tokenizer(prompts[i : i + at_once], return_tensors="pt", padding=True) for i in range(0, len(prompts), at_once)
    ]

    @torch.no_grad()
    def draw(batch: dict[str, torch.Tensor], tokens: int) -> tuple[int, int]:
        """Tokens and responses of one batch."""
        out = model.generate(
            **batch,
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            num_return_sequences=sizes.samples,
            max_new_tokens=tokens,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
        )
        ended_BT = is_end[out[:, batch["input_ids"].shape[1] :]]
        before_BT = ended_BT.cumsum(1) - ended_BT.int()  # ends before each token
        return int((before_BT == 0).sum()), len(out)

    draw(batches[0], 2)  # what is done once is done
    torch.manual_seed(0)
    with meter.region():
        drawn = [draw(batch, sizes.new_tokens) for batch in batches]
    tokens, responses = (sum(d[i] for d in drawn) for i in (0, 1))
    return {"units": tokens, "responses": responses, "parameters": sum(p.numel() for p in model.parameters())}
