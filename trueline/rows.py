"""`trueline sample` and `trueline score`: a file of prompts or responses through a model or judge, over many workers.

The file is cut into blocks of the same rows whoever works, and a row's random stream is named by its place in the file, so
the result does not depend on how many workers there are, on Ray, or on one of them being killed. A block that is done stands
in `OUTPUT.parts/`; a command that was stopped goes on with the missing ones, and the last step lays them end to end.

    sample   groups as in a run's `stream.jsonl`: ids, masks and the log-probs of the draw, to be judged or replayed
    score    a line a group: log-prob of each response under the model (and a reference), rewards of judges by label
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console

from trueline.errors import TruelineError
from trueline.groups import Group
from trueline.jobs import Job, run_jobs
from trueline.wholefile import write_json, write_lines, write_whole
from trueline.workers import Crew

Row = dict[str, Any]
HERE = Crew()


@dataclass(frozen=True)
class Sampling:
    """What `trueline sample` was asked for. Lengths are tokens; block: prompts a piece of work."""

    model: str
    data: tuple[str, ...]
    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_length: int = 1024
    max_new_tokens: int | None = None
    prompts: int | None = None
    seed: int = 0
    block: int = 64
    offline: bool = False


@dataclass(frozen=True)
class Scoring:
    """What `trueline score` was asked for. reference: a model whose log-probs stand beside; block: groups a piece of work."""

    data: tuple[str, ...]
    model: str | None = None
    reference: str | None = None
    feedback: tuple[str, ...] = ()
    max_length: int = 1024
    block: int = 64
    offline: bool = False


def sample(asked: Sampling, output: str | Path, crew: Crew = HERE) -> Path:
    """Fresh responses to every different prompt of the data, in file order."""
    if asked.samples < 1 or asked.block < 1:
        raise TruelineError(f"samples is {asked.samples} and block {asked.block}; expected 1 or more.")
    return _in_blocks(asked, Path(output), crew, len(_prompts(asked)), _sample_block)


def score(asked: Scoring, output: str | Path, crew: Crew = HERE) -> Path:
    """Log-probs and rewards of every response of the data, in file order."""
    if not asked.model and not asked.feedback:
        raise TruelineError("Who scores? Give --model for log-probs, --feedback for rewards, or both.")
    if asked.reference and not asked.model:
        raise TruelineError("reference has no effect without model: its log-probs stand beside the model's.")
    groups = _groups(asked)
    lone = next((g for g in groups if not g.responses), None)
    if lone is not None:
        raise TruelineError(f"{lone.origin or 'A row'} has no response to score. `trueline sample` writes some.")
    return _in_blocks(asked, Path(output), crew, len(groups), _score_block)


def _in_blocks(
    asked: Sampling | Scoring, output: Path, crew: Crew, rows: int, work: Callable[[Any, int, int, str], None]
) -> Path:
    """Every block as a job, then all of them as one file."""
    if not rows:
        raise TruelineError(f"{', '.join(asked.data)} holds no row to work on.")
    if output.exists():
        raise TruelineError(f"'{output}' exists already. Give another --output, or delete it.")
    parts = output.with_name(output.name + ".parts")
    settings = json.loads(json.dumps(asdict(asked)))
    told = parts / "settings.json"
    if told.exists() and json.loads(told.read_text(encoding="utf-8")) != settings:
        raise TruelineError(f"'{parts}' holds pieces of other settings. Give another --output, or delete it.")
    write_json(told, settings)
    jobs = []
    for number, start in zip(count(1), range(0, rows, asked.block), strict=False):
        product = parts / f"block-{number:06d}.jsonl"
        journal, log = (parts, product.name), parts / f"block-{number:06d}.log"
        arguments = (asked, start, min(start + asked.block, rows), str(product.resolve()))
        jobs.append(Job(f"rows {start + 1}-{arguments[2]}", work, arguments, (), 1, journal, log.resolve(), product))
    console = Console(stderr=True)
    run_jobs(jobs, console, crew)
    products = [job.product for job in jobs if job.product]
    dropped: Counter[str] = Counter()
    for file in filter(Path.exists, map(_dropped_beside, products)):
        dropped.update(json.loads(file.read_text(encoding="utf-8")))
    if dropped:
        reasons = ", ".join(f"{number} {reason}" for reason, number in dropped.items())
        console.print(f"{dropped.total()} of {rows} rows were dropped: {reasons}.", highlight=False)
    write_whole(output, "".join(product.read_text(encoding="utf-8") for product in products))
    shutil.rmtree(parts)
    return output


# -- in a worker -------------------------------------------------------------------------------------------------------


def _sample_block(asked: Sampling, first: int, end: int, product: str) -> None:
    """Rows first to end of the prompts, sampled; a prompt's stream is its number in the file."""
    from trueline.drawing import drawer
    from trueline.encode import Limits
    from trueline.randomness import derive

    scorer = _scorer(asked.model, None, asked.max_length, asked.offline)
    wanted = _prompts(asked)[first:end]
    place = {g.prompt_key(): first + i for i, g in enumerate(wanted)}
    kept = _encoded(scorer, wanted, asked.max_length, product)
    limits = Limits(asked.max_length, max_response_length=asked.max_new_tokens)
    draw = drawer(scorer.policy, scorer.loaded, limits)
    law = {"temperature": asked.temperature, "top_p": asked.top_p, "top_k": asked.top_k}
    streams = [place[g.prompt_key()] for g in kept]
    drawn = draw(kept, asked.samples, derive(asked.seed, "sample"), streams=streams, **law)
    write_lines(Path(product), (g.to_json() for g in drawn))


def _score_block(asked: Scoring, first: int, end: int, product: str) -> None:
    """Groups first to end of the data, scored."""
    groups = _groups(asked)[first:end]
    scorer = _scorer(asked.model, asked.reference, asked.max_length, asked.offline) if asked.model else None
    kept = _encoded(scorer, groups, asked.max_length, product) if scorer else groups
    logps = scorer.logps(kept) if scorer else []
    references = scorer.logps(kept, reference=True) if scorer and asked.reference else []
    if asked.feedback:
        from trueline.assemble import add_rewards

        add_rewards(kept, _judges(asked.feedback, asked.offline))
    write_lines(Path(product), (_scored_row(g, i, logps, references) for i, g in enumerate(kept)))


def _scored_row(group: Group, number: int, logps: list[Any], references: list[Any]) -> Row:
    responses: list[Row] = []
    for i, response in enumerate(group.responses):
        row: Row = {"text": response.text}
        if logps:
            row |= {"logp": sum(logps[number][i]), "tokens": len(logps[number][i])}
        if references:
            row["reference_logp"] = sum(references[number][i])
        if response.rewards:
            row["rewards"] = response.rewards
        responses.append(row)
    return {"origin": group.origin, "prompt_id": group.prompt_key(), "prompt": group.prompt, "responses": responses}


def _encoded(scorer: Any, groups: list[Group], max_length: int, product: str) -> list[Group]:
    """The rows in the model's tokens. What is dropped is counted beside the block, before the block is there."""
    from trueline.encode import Limits, encode
    from trueline.vocabulary import embedding_rows

    loaded = scorer.loaded
    rows = embedding_rows(loaded.model)
    kept, audit = encode(groups, loaded.tokenizer, Limits(max_length), eos_ids=loaded.eos_ids, vocabulary=rows)
    write_json(_dropped_beside(Path(product)), audit.dropped)
    return kept


def _dropped_beside(product: Path) -> Path:
    return product.with_suffix(".dropped.json")


@lru_cache(maxsize=1)
def _scorer(model: str, reference: str | None, max_length: int, offline: bool) -> Any:
    """The model, loaded once a worker."""
    from trueline.measuring.contract import Request
    from trueline.measuring.scorer import Scorer

    request = Request("the command", model=model, max_length=max_length, offline=offline)
    return Scorer.open(request, model, reference=reference)


@lru_cache(maxsize=1)
def _judges(specs: tuple[str, ...], offline: bool) -> dict[str, Any]:
    """Judges by label, which read the responses as text."""
    from trueline.measuring.contract import Request
    from trueline.measuring.pairs import _TextOnly
    from trueline.measuring.scorer import judges_of

    return judges_of(Request("score", feedback=list(specs), offline=offline), _TextOnly(), at_most=len(specs))


def _groups(asked: Sampling | Scoring) -> list[Group]:
    from trueline.readers import read

    if not asked.data:
        raise TruelineError("No data were given. Use --data FILE.")
    groups, _ = read(list(asked.data), offline=asked.offline)
    return groups


def _prompts(asked: Sampling) -> list[Group]:
    """Every different prompt of the data, without responses."""
    unique: dict[str, Group] = {}
    for group in _groups(asked):
        unique.setdefault(group.prompt_key(), replace(group, responses=[], preferences=None))
    return list(unique.values())[: asked.prompts]
