"""Decoding-time alignment: one engine, one loop, many short methods (`trueline/decode/`).

    engine = DecodeEngine(policy, rewards={"rm": reward}, models={"dpo": aligned}, tokenizer=tokenizer)
    number = engine.open(Request(prompt_ids, "args", {"k": 10, "weight": 1.0}, max_new_tokens=64, eos_ids=eos))
    while engine.busy:
        for event in engine.step():   # Event: tokens committed for good, their log-probs, a Result at the end
            ...
    results = engine.run(requests)    # the same, offline: one list of choices a request

How it works. Every choice of every open request is a generator (a loop of the family `decode`) that reads like sequential
code about one response and says `yield from` wherever a model must be asked. One `step` collects what all of them wait for,
asks every model once, and hands the answers back: batching over requests and candidates is the engine's, never a method's.

Sequences are `Line`s: a list of token ids that may be forked, extended, cropped and closed at will. What each model has already
read of a line is kept beside it and synchronised when that model is next asked: the longest common prefix stays, what was
taken back is cropped from the cache, what is new is fed. So caches never decide what is computed, only how much, and no
method can use a stale one. Prompts and committed tokens are stored once however many candidates hang on them
(`engine/branches.py`). A model whose layers cannot take that falls back to its own cache, and then to whole rows, announced once.

How to write a method (contract and hooks: `trueline/decode/contract.py`). `args`, whole:

    @decoder(unit="token", reward="prefix", width="k", arxiv="2402.01694")
    def args(loop: Loop, *, k: int = 10, weight: float = 1.0, tau: float = 0.0) -> Steps:
        while (here := (yield from loop.next_position())) is not None:   # None: the response is over
            ids, logits = here.top(k)                                    # of the mixed, masked proposal
            rewards = yield from loop.score(loop.branch(ids))            # k lines, one token each
            pick, logp = loop.softmax(logits + weight * rewards, tau)    # tau 0: argmax
            loop.commit_token(here, ids[pick], behaviour=logp, reward=rewards[pick])

The loop (`loop.py`) offers:

    line                      the committed line; `line.new` are its new tokens, `line.ended` whether an end token was drawn
    next_position()           next-token distributions after the line, or None at the end; where a gate is set, positions
                              that it finds certain are drawn plainly on the way
    branch(ids)               one line per id: the committed line and that token
    fork(n)                   n copies of the committed line, to be grown
    grow(lines, limit, until, greedy, model)   draw tokens for each line from the proposal (or another model), all at once
    positions(lines)          next-token distributions after each of these lines
    score(lines, finished)    rewards [len(lines)], float64, -inf where a reward failed on a candidate
    softmax(keys, tau), accept(p), uniform()   every random choice, each from a stream named (seed, request, choice, place)
    commit_token(...), commit(line, ...)       make it final: an event. Closing what was not chosen is the engine's business

Exact laws. All randomness passes through `chance.py`; `exact.law(engine, request)` runs a method once for every outcome of
its draws and returns the exact distribution over responses, for any language model with logits (`TableModel` for tabular
ones).

Files: `request.py` (Request, Event, Result, Counters), `engine.py` (DecodeEngine), `loop.py` (what a method sees), `lines.py` (lines and
their synchronisation), `proposal.py` (mix, mask, mark, law), `chance.py`, `exact.py`, `rewards.py` (the interface and rewards that read ids),
`text_rewards.py` (rules, feedback of Trueline, sums, calibration).
"""

from trueline.decoding.engine import DecodeEngine
from trueline.decoding.request import Allowed, Budget, Counters, Event, Request, Result
from trueline.decoding.rewards import Capabilities, RewardModel

__all__ = [
    "Allowed",
    "Budget",
    "Capabilities",
    "Counters",
    "DecodeEngine",
    "Event",
    "Request",
    "Result",
    "RewardModel",
]
