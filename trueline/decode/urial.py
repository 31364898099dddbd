"""URIAL: a base model answers like an assistant after a constant prompt with a few examples (arXiv 2312.01552).

    # Instruction, then per example  # Query: fenced text  # Answer: fenced text, then the query and an opened fence

The layout is the paper's; instruction and examples are our own words (`_urial_examples.py`). The answer ends at the closing fence or where
the model goes on to invent a query; both are stop texts, matched on text across tokens. 3 examples (about a thousand tokens) are the
paper's main setting, one of them a refusal (refusal=False: its variant without); 0 leaves the instruction alone. An answer that holds fences of its own
ends early: choose another fence then. The authors sample at temperature 0.3 with a repetition penalty of 1.1, which is not ours to
set here. The text before the query is the same in every request: an engine with prefix_tokens keeps it and reads it once. Rewards read the
original prompt, never the examples.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trueline.corrections import question_of
from trueline.decode._urial_examples import DECLINED, HELPFUL, INSTRUCTION
from trueline.decode.contract import decoder
from trueline.decoding.request import Request
from trueline.decoding.rewriting import encode_prompt
from trueline.errors import TruelineError


@decoder(
    unit="token", hook="prompt", needs="text", stage="pre", arxiv="2312.01552", paper="The Unlocking Spell on Base LLMs"
)
def urial(engine: Any, request: Request, *, examples: int = 3, refusal: bool = True, fence: str = "```") -> Request:
    """examples: 0 to 3. refusal: whether the last of them declines a harmful request. fence: what queries and answers stand between."""
    if engine.tokenizer is None:
        raise TruelineError("urial writes its prompt as text; open the engine with a tokenizer.")
    if not fence.strip() or fence != fence.strip():
        raise TruelineError(f"urial.fence is {fence!r}; expected a text without spaces around it, such as '```'.")
    question = question_of(request.prompt)
    if not question.strip():
        raise TruelineError("urial needs the query as text: give the request its prompt beside prompt_ids.")
    if fence in question:
        raise TruelineError(f"The query holds the fence {fence!r} that is to end it. Set urial.fence to another text.")
    ids = encode_prompt(engine.tokenizer, constant(examples, refusal, fence) + f"# Query:\n{fence}\n{question}\n{fence}\n\n# Answer:\n{fence}\n", request.eos_ids)  # fmt: skip
    stop = [*request.stop, f"\n{fence}", fence, "\n# Query:"]
    judged = request.judged_ids or list(request.prompt_ids)
    return replace(request, prompt_ids=ids, stop=list(dict.fromkeys(stop)), judged_ids=judged)


def constant(examples: int, refusal: bool, fence: str) -> str:
    """The text before every query."""
    if not 0 <= examples <= 3:
        raise TruelineError(f"urial.examples is {examples}; expected 0 to 3.")
    chosen = (*HELPFUL[: examples - 1], DECLINED) if refusal and examples else HELPFUL[:examples]
    blocks = [
        f"# Query:\n{fence}\n{query}\n{fence}\n\n# Answer:\n{fence}\n{answer}\n{fence}\n" for query, answer in chosen
    ]
    return "\n".join([f"# Instruction\n\n{INSTRUCTION}\n", *blocks, ""])
