"""P-Aligner: a second model rewrites the instruction before it is answered (arXiv 2508.04626).

    instruction -> rewritten instruction (the rewriter's likeliest tokens) -> the policy's answer;   rewards read the RAW instruction

The raw instruction stays where the rewriter does not come to an end, writes nothing, or writes more than `longest` times as much. In a conversation
the last user turn is rewritten. With rounds > 0 no trained rewriter is needed: the second model applies principles one at a time and a tree
search (`trueline/decoding/instruction_tree.py`) keeps what the request's reward likes best in answers to the raw instruction, `samples` of
them a node; 10 rounds, exploration 1 and ten principles are the paper's. That costs rounds times samples responses. The trees of many
instructions make training pairs (`preference_rows`). Trained on safe rewrites, a rewriter can make the model refuse more.
details["instruction"] has what was answered, details["tree"] the search.
"""

from __future__ import annotations

from typing import Any

from trueline.decode.contract import decoder
from trueline.decoding.instruction_tree import PRINCIPLES, Tree, grow, rewriter_prompt
from trueline.decoding.loop import Asking, Loop, Steps
from trueline.decoding.rewriting import encode_prompt, written
from trueline.errors import TruelineError
from trueline.groups import Prompt


@decoder(
    unit="rewrite", hook="prompt", needs="text", stage="pre", models="rewriter", arxiv="2508.04626", paper="P-Aligner: Enabling Pre-Alignment of Language Models"
)  # fmt: skip
def p_aligner(
    loop: Loop,
    *,
    max_tokens: int = 512,
    longest: float = 10.0,
    rounds: int = 0,
    samples: int = 4,
    exploration: float = 1.0,
) -> Steps:
    """max_tokens: of the rewritten instruction. longest: how many times the raw one's characters it may have. rounds: of the tree
    search; 0 asks the rewriter once. samples, exploration: of the tree search."""
    request = loop.request
    if loop.tokenizer is None:
        raise TruelineError("p_aligner rewrites text; open the engine with a tokenizer.")
    if "urial" in request.method.split("+"):
        raise TruelineError("p_aligner and urial both write the prompt. Take one of them.")
    if not rounds and (samples, exploration) != (4, 1.0):
        raise TruelineError(
            "p_aligner.samples and .exploration have no effect without rounds. Set rounds, or leave them out."
        )
    raw = _instruction(request.prompt)
    _check_encoding(loop)
    if rounds:
        tree = yield from _searched(loop, raw, max_tokens, longest, rounds, samples, exploration)
        chosen = tree.nodes[tree.best].text
        loop.details["tree"] = tree.to_json()
    else:
        chosen = yield from _rewritten(loop, raw, raw, "", max_tokens, longest)
    loop.details["instruction"] = chosen
    if chosen != raw:
        loop.restart(_ids(loop, chosen))


def _rewritten(loop: Loop, raw: str, text: str, principle: str, max_tokens: int, longest: float) -> Asking[str]:
    """The rewriter's version of a text, or the text itself where it makes none."""
    line = yield from written(loop, "rewriter", rewriter_prompt(text, principle), max_tokens, constrained=False)
    said = str(loop.tokenizer.decode(line.new[:-1], skip_special_tokens=True)).strip() if line.ended else ""
    loop.close([line])
    return said if said and len(said) <= longest * len(raw) else text


def _searched(
    loop: Loop, raw: str, max_tokens: int, longest: float, rounds: int, samples: int, exploration: float
) -> Asking[Tree]:
    """The tree of rewritten instructions, scored by the request's rewards."""

    def rewrite(text: str, principle: str) -> Asking[str]:
        return _rewritten(loop, raw, text, principle, max_tokens, longest)

    def simulate(text: str) -> Asking[list[float]]:
        lines = [loop.open(_ids(loop, text), loop.limit) for _ in range(samples)]
        for line in lines:
            line.root.judged_ids = loop.root.judged_ids or loop.prompt_ids
        yield from loop.grow(lines)
        rewards = yield from loop.score(lines, required=False)
        loop.close(lines)
        return [float(reward) for reward in rewards]

    return (
        yield from grow(
            raw, PRINCIPLES, rewrite, simulate, rounds=rounds, exploration=exploration, seed=loop.request.seed
        )
    )


def _instruction(prompt: Prompt) -> str:
    """What is rewritten: the text, or the last user turn."""
    text = prompt if isinstance(prompt, str) else next((m["content"] for m in prompt[::-1] if m["role"] == "user"), "")
    if not str(text).strip():
        raise TruelineError("p_aligner needs the instruction as text: give the request its prompt beside prompt_ids.")
    return str(text)


def _ids(loop: Loop, instruction: str) -> list[int]:
    """The request's prompt with another instruction, in tokens."""
    prompt: Any = loop.request.prompt
    if isinstance(prompt, str):
        prompt = instruction
    else:
        last = max(i for i, m in enumerate(prompt) if m["role"] == "user")
        prompt = [{**m, "content": instruction} if i == last else m for i, m in enumerate(prompt)]
    ids = encode_prompt(loop.tokenizer, prompt, loop.request.eos_ids)
    positions = loop.proposal.policy.model.positions
    if positions is not None and len(ids) + loop.limit > positions:
        raise TruelineError(
            f"The rewritten prompt has {len(ids)} tokens and max_new_tokens is {loop.limit}, together more than the model's {positions} "
            "positions. Lower p_aligner.longest or max_new_tokens."
        )
    return ids


def _check_encoding(loop: Loop) -> None:
    """The rewritten prompt must differ from the raw one by its instruction alone."""
    if encode_prompt(loop.tokenizer, loop.request.prompt, loop.request.eos_ids) != loop.prompt_ids:
        raise TruelineError(
            "p_aligner would render the prompt differently from how the request did: its prompt_ids are not what the tokenizer and its "
            "chat template make of prompt. Give the request the prompt that was encoded."
        )
