"""Models for curators. What a model said is on disk before it is used, keyed by content, so that a killed run goes on.

Log-probs go through the score cache of the engine, which re-scores a few rows when it is opened; answers, digits and
vectors through JSON lines keyed by the model's fingerprint, the request and its law. Cross-fitted models are run folders: a
finished one is loaded, an unfinished one resumed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from trueline.curate.contract import Floats, pairs_of
from trueline.curate.contract import Pool as PoolProtocol
from trueline.curating.crossfit import cross_fit
from trueline.curating.writing import row_of
from trueline.encode import Limits, encode
from trueline.engine import checkpoint
from trueline.engine.journal import Journal, records
from trueline.engine.layout import laid_out
from trueline.engine.policy import Policy
from trueline.engine.sampler import sample
from trueline.engine.scorecache import ScoreCache, scorer_key
from trueline.errors import TruelineError
from trueline.groups import Group, Message
from trueline.models import Loaded, load_frozen
from trueline.randomness import derive
from trueline.vocabulary import embedding_rows

if TYPE_CHECKING:
    from trueline.curating import Request

CHUNK = 64  # questions between two writes to disk


class ModelWorkshop:
    """`contract.Workshop` on --model: a folder, a run or a hub id, or for answers alone MODEL@URL."""

    given = True

    def __init__(self, request: Request, folder: Path):
        self.request, self.folder = request, folder
        self.path = str(request.model)
        self.remote = re.fullmatch(r"(.+)@(https?://.+)", self.path)
        self._open: dict[str, Local] = {}
        self._endpoints: dict[str, Any] = {}
        self._judges: dict[str, Any] = {}

    def facts(self) -> dict[str, Any]:
        told = {path: {"fingerprint": local.key} for path, local in self._open.items()}
        return {self.path: {"endpoint": True}} if self.remote else told or {self.path: {"asked": False}}

    def local(self, path: str | None = None) -> Local:
        """A model folder, loaded once."""
        path = path or self.path
        if path == self.path and self.remote:
            raise TruelineError(
                f"'{path}' is an endpoint, which answers in text. This needs the model's own numbers or its bare template: give "
                "a model folder."
            )
        if path not in self._open:
            self._open[path] = Local(path, self.request)
        return self._open[path]

    # -- log-probs -----------------------------------------------------------------------------------------------------

    def pair_logps(self, pool: PoolProtocol) -> tuple[Floats, Floats]:
        local = self.local()
        cache = ScoreCache(self.folder / "scores", local.key)
        found = np.full((2, pool.n), np.nan)
        start = 0
        for batch in pool.batches(CHUNK):
            pairs = {start + i: pair for i, g in enumerate(batch) if (pair := _pair(g)) is not None}
            encoded = local.encoded(list(pairs.items()))
            cache.fill([g for _, g in encoded], local.logps)
            for row, group in encoded:
                found[:, row] = [math.fsum(r.reference_logp or ()) for r in group.responses]
            start += len(batch)
        return found[0], found[1]

    def cross_fitted(
        self, pool: PoolProtocol, *, seeds: int, evaluations: int, **training: Any
    ) -> tuple[Floats, Floats]:
        from trueline.align import align

        beta = float(training.pop("beta"))
        reference = self.local()
        groups = [_pair(g) for batch in pool.batches() for g in batch]
        usable = np.array([i for i, g in enumerate(groups) if g is not None], dtype=np.int64)
        encoded = dict(reference.encoded([(int(i), groups[i]) for i in usable]))  # type: ignore[misc]
        usable = np.array(sorted(encoded), dtype=np.int64)
        clusters = pool.fact("prompt")[usable].tolist()
        before_w, before_l = self.pair_logps(pool)

        def train(rows: NDArray[np.int64], seed: int, fold: int) -> Path:
            return self._train(
                align, [groups[usable[r]] for r in rows], pool.seed, seed, fold, beta, evaluations, training
            )

        def score(run: Path, rows: NDArray[np.int64]) -> Floats:
            places = usable[rows]
            held_out = [encoded[int(p)] for p in places]
            margins = []
            for local in _checkpoints(run, evaluations, self.request):
                logps = [[math.fsum(r) for r in g] for g in local.logps(held_out)]
                now = np.array(logps)
                margins.append(beta * (now[:, 0] - now[:, 1] - before_w[places] + before_l[places]))
            return np.array(margins)

        margin_EU = cross_fit(clusters, train, score, seeds=seeds)
        margin = np.full((len(margin_EU), pool.n), np.nan)
        margin[:, usable] = margin_EU
        return np.logaddexp(0.0, -margin), margin

    def _train(self, align: Any, groups: list[Any], base: int, seed: int, fold: int, beta: float, evaluations: int, training: dict[str, Any]) -> Path:  # fmt: skip
        """DPO on one side of a split, as a run folder that is taken up where it stopped."""
        digest = hashlib.sha256(
            json.dumps([beta, evaluations, training, base, self.local().key], sort_keys=True).encode()
        )
        for group in groups:
            digest.update(
                json.dumps([group.prompt, [r.text for r in group.responses]], default=str).encode(
                    "utf-8", "surrogatepass"
                )
            )
        run = self.folder / f"cross-fit-{seed}-{fold}-{digest.hexdigest()[:12]}"
        if _finished(run):
            return run
        batch = int(training.get("batch_size", 32))
        steps = max(evaluations, math.ceil(len(groups) * float(training.get("epochs", 1.0)) / batch))
        data = run.with_suffix(".jsonl")
        data.parent.mkdir(parents=True, exist_ok=True)
        data.write_text("".join(json.dumps(row_of(g), ensure_ascii=False) + "\n" for g in groups), encoding="utf-8", errors="surrogatepass")  # fmt: skip
        options = {k: v for k, v in training.items() if k != "epochs"}
        align(
            model=self.path,
            data=[str(data)],
            output=str(run),
            objective={"dpo": 1.0},
            method_options={"objectives.dpo": {"beta": beta}},
            steps=steps,
            save_steps=max(1, steps // evaluations),
            seed=derive(base, "cross-fit", seed, fold) % (1 << 31),
            max_length=self.request.max_length,
            token_budget=self.request.token_budget,
            offline=self.request.offline,
            resume=run.exists(),
            **options,
        )
        return run

    # -- numbers of single texts ---------------------------------------------------------------------------------------

    def digits(self, path: str, questions: Sequence[str], digits: Sequence[str]) -> Floats:
        local = self.local(path)

        def compute(part: Sequence[str]) -> list[list[float]]:
            return local.digit_odds(part, digits)

        law = {"kind": "digits", "digits": list(digits)}
        return np.array(self._kept(f"digits-{local.key[:12]}", local.key, law, questions, compute), dtype=np.float64)

    def embed(self, texts: Sequence[str]) -> Floats:
        local = self.local()
        rows = self._kept(f"vectors-{local.key[:12]}", local.key, {"kind": "last state"}, texts, local.last_states)
        return np.array(rows, dtype=np.float64)

    # -- answers -------------------------------------------------------------------------------------------------------

    def answers(
        self,
        questions: Sequence[str | list[Message]],
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        number: int | Sequence[int] = 0,
        by: str | None = None,
        must_end: bool = False,
    ) -> list[str | None]:
        numbers = [number] * len(questions) if isinstance(number, int) else list(number)
        if self.request.temperature is not None and by is None and temperature > 0:
            temperature = self.request.temperature
        remote = re.fullmatch(r"(.+)@(https?://.+)", by) if by else self.remote
        if remote:
            asked = [_messages(q) for q in questions]
            # equal requests have one answer on disk, so a further draw must be another request
            asked = [
                [{"role": "system", "content": f"Draw {k}."}, *q] if k else q
                for k, q in zip(numbers, asked, strict=True)
            ]
            return list(self._endpoint(remote, temperature).ask(asked))
        local = self.local(by)
        request = self.request
        texts = [
            json.dumps([k, q], sort_keys=True, ensure_ascii=False) for k, q in zip(numbers, questions, strict=True)
        ]

        def compute(part: Sequence[str]) -> list[list[Any]]:
            asked = [tuple(json.loads(text)) for text in part]
            return local.written(asked, request.max_new_tokens, request.seed, temperature=temperature, top_p=top_p)

        law = {"temperature": temperature, "top_p": top_p, "seed": request.seed}
        whole = {**law, "most": request.max_new_tokens, "max_length": request.max_length}
        rows = self._kept("answers", local.key, whole, texts, compute)
        return [text if ended or not must_end else None for text, ended in rows]

    def feedback(self, spec: str, groups: list[Group]) -> list[list[float | None]]:
        from trueline.feedback.contract import FeedbackContext

        if spec not in self._judges:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            request = self.request
            context = FeedbackContext(TextOnly(), request.token_budget, "exact", device, request.offline, request.seed)
            self._judges[spec] = context.open(spec)
        copies = [
            replace(g, prompt_ids=None, responses=[replace(r, reward=None, ids=None, mask=None) for r in g.responses])
            for g in groups
        ]
        self._judges[spec](copies)
        return [[r.reward for r in g.responses] for g in copies]

    def prefix(self) -> str:
        return pre_query(self.local().tokenizer)

    def token_blocks(self, groups: Sequence[tuple[int, Group]]) -> list[tuple[int, list[int]]]:
        encoded = self.local().encoded(groups)
        return [(row, [len(g.prompt_ids or ()), *(len(r.ids or ()) for r in g.responses[:1])]) for row, g in encoded]

    def _endpoint(self, remote: re.Match[str], temperature: float) -> Any:
        from trueline.feedback._endpoint import Endpoint

        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{remote[1]}@{remote[2]}#{temperature:g}"
        if name not in self._endpoints:
            self._endpoints[name] = Endpoint(
                remote[1],
                remote[2],
                temperature=temperature,
                max_tokens=self.request.max_new_tokens,
                timeout=120.0,
                retries=6,
                concurrency=8,
                prices=(0.0, 0.0),
                cache=str(self.folder / f"endpoint-{_key('', {}, name)[:8]}.jsonl"),
            )
        return self._endpoints[name]

    def _kept(self, name: str, key: str, law: dict[str, Any], texts: Sequence[str], compute: Callable[[Sequence[str]], Sequence[Any]]) -> list[Any]:  # fmt: skip
        """compute(text) for every text, from disk where it was computed before; written a chunk at a time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.jsonl"
        known = {row["key"]: row["value"] for row in records(path)} if path.exists() else {}
        names = [_key(key, law, text) for text in texts]
        missing = {k: t for k, t in zip(names, texts, strict=True) if k not in known}
        if missing:
            journal = Journal(path)
            waiting = list(missing.items())
            for start in range(0, len(waiting), CHUNK):
                part = waiting[start : start + CHUNK]
                for (k, _), value in zip(part, compute([t for _, t in part]), strict=True):
                    journal.append({"key": k, "value": value})
                    known[k] = value
        return [known[k] for k in names]


class Local:
    """A frozen model with its tokenizer. key: fingerprint of everything that changes its numbers."""

    def __init__(self, path: str, request: Request, loaded: Loaded | None = None):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.request = request
        self.loaded = loaded or load_frozen(path, device, offline=request.offline)
        self.tokenizer = self.loaded.tokenizer
        policy = Policy(self.loaded.model, reference="none", max_length=request.max_length)
        self.policy = policy.requires_grad_(False).eval()

    @cached_property
    def key(self) -> str:
        return scorer_key(
            self.loaded.model, precision="exact", layout_mode=self.policy.mode, max_length=self.request.max_length,
            template=self.loaded.chat_template,
        )  # fmt: skip

    def encoded(self, rows: Sequence[tuple[int, Group]]) -> list[tuple[int, Group]]:
        """Rows that fit, in the model's tokens; a row that is too long or cannot be encoded is left out."""
        if not rows:
            return []
        marked = [replace(g, extras={**g.extras, "curate_row": row}) for row, g in rows]
        limits = Limits(self.request.max_length, truncation="drop")
        kept, _ = encode(
            marked, self.tokenizer, limits, eos_ids=self.loaded.eos_ids, vocabulary=embedding_rows(self.loaded.model)
        )
        return [(int(g.extras["curate_row"]), g) for g in kept]

    @torch.no_grad()
    def logps(self, groups: list[Group]) -> list[list[list[float]]]:
        """Log-prob of each counted token of each response of each group."""
        rows: list[list[float]] = []
        for _, layout in laid_out(groups, self.request.token_budget, self.policy.device):
            values = self.policy(layout).logp_N
            rows += [part.tolist() for part in values.split(layout.length_R.tolist())]
        found, at = [], iter(rows)
        for group in groups:
            found.append([next(at) for _ in group.responses])
        return found

    @torch.no_grad()
    def digit_odds(self, questions: Sequence[str], digits: Sequence[str]) -> list[list[float]]:
        """Softmax over the log-probs of the digits, each one token, right after the question."""
        ids = self.digit_ids(digits)
        found = []
        with self.policy.plain_attention():
            for question in questions:
                row = torch.tensor([self.prompt_ids(question)], device=self.policy.device)
                logits_V = self.loaded.model(input_ids=row).logits[0, -1].float()
                found.append(torch.softmax(logits_V[ids], 0).tolist())
        return found

    def digit_ids(self, digits: Sequence[str]) -> list[int]:
        """The token of each digit as it is written after a space or after nothing, whichever the tokenizer holds as one token."""
        ids = []
        for digit in digits:
            choices = [self.tokenizer(f"{space}{digit}", add_special_tokens=False)["input_ids"] for space in ("", " ")]
            single = [c[-1] for c in choices if len(c) == 1 or self.tokenizer.decode(c[-1:]).strip() == digit]
            if not single or self.tokenizer.decode([single[0]]).strip() != digit:
                raise TruelineError(
                    f"The scorer's tokenizer has no single token for '{digit}', so its odds cannot be read."
                )
            ids.append(single[0])
        if len(set(ids)) != len(ids):
            raise TruelineError(f"The scorer's tokenizer gives two of the digits {', '.join(digits)} one token.")
        return ids

    @torch.no_grad()
    def last_states(self, texts: Sequence[str]) -> list[list[float]]:
        """The last token's last hidden state of each text (its last max_length tokens), of length 1."""
        found = []
        with self.policy.plain_attention():
            for text in texts:
                row = torch.tensor([self.prompt_ids(text)], device=self.policy.device)
                state = self.loaded.model(input_ids=row, output_hidden_states=True).hidden_states[-1][0, -1].float()
                found.append((state / state.norm().clamp_min(1e-12)).tolist())
        return found

    def prompt_ids(self, question: str | list[Message]) -> list[int]:
        """Ids of text as it is (special tokens in it are read), or of messages through the chat template. At most max_length."""
        if not isinstance(question, str) and not self.loaded.chat_template:
            question = "\n".join(str(m["content"]) for m in question)
        if isinstance(question, str):
            ids = list(self.tokenizer(question, add_special_tokens=False)["input_ids"])
            bos = self.tokenizer.bos_token_id
            adds = bos is not None and self.tokenizer("x")["input_ids"][:1] == [bos]
            if adds and ids[:1] != [bos]:
                ids = [bos, *ids]
            ids = ids or [bos if bos is not None else self.loaded.eos_ids[0]]
        else:
            groups, audit = encode([Group(question)], self.tokenizer, Limits(1 << 24), eos_ids=self.loaded.eos_ids)
            if not groups:
                raise TruelineError(f"A question cannot be rendered for the model: {audit.dropped}.")
            ids = list(groups[0].prompt_ids or ())
        return ids[-(self.request.max_length - 1) :]

    def written(
        self,
        questions: Sequence[tuple[int, str | list[Message]]],
        most: int,
        seed: int,
        *,
        temperature: float,
        top_p: float,
    ) -> list[list[Any]]:
        """[what the model writes, whether it ended itself] for each (number, question). A draw depends on seed, number and
        question alone."""
        prompts = [self.prompt_ids(q) for _, q in questions]
        room = [max(1, min(most, self.request.max_length - len(p))) for p in prompts]
        streams = [derive(seed, "curate", k, json.dumps(q, sort_keys=True, default=str)) for k, q in questions]
        drawn = sample(
            self.policy,
            prompts,
            1,
            max_new_tokens=room,
            temperature=temperature,
            top_p=top_p,
            eos_ids=self.loaded.eos_ids,
            seed=seed,
            streams=streams,
        )
        texts = [str(self.tokenizer.decode(rows[0].ids, skip_special_tokens=True)) for rows in drawn]
        return [[text, rows[0].finish == "stop"] for text, rows in zip(texts, drawn, strict=True)]


SENTINEL = "\u241fquery\u241f"


def pre_query(tokenizer: Any) -> str:
    """What the chat template writes before the first user's words: a sentinel is rendered and all from it on cut off."""
    if not tokenizer.chat_template:
        raise TruelineError(
            "The model has no chat template, so there is no place where a user's words begin. Give a chat model."
        )
    rendered = str(tokenizer.apply_chat_template([{"role": "user", "content": SENTINEL}], tokenize=False))
    if rendered.count(SENTINEL) != 1:
        raise TruelineError(
            "The chat template does not write a user's words exactly once as they are, so its prefix is not known."
        )
    return rendered[: rendered.index(SENTINEL)]


class TextOnly:
    """Stands where a policy's tokenizer would: it shares no vocabulary with any judge, so judges read the text."""

    def get_vocab(self) -> dict[str, int]:
        return {}

    def __len__(self) -> int:
        return 0


def _pair(group: Group) -> Group | None:
    """The group with its better and its worse response alone."""
    pair = pairs_of(group)
    if pair is None:
        return None
    better, worse = (replace(r, rank=i) for i, r in enumerate(pair))
    return replace(group, responses=[better, worse])


def _messages(question: str | list[Message]) -> list[dict[str, str]]:
    if isinstance(question, str):
        return [{"role": "user", "content": question}]
    return [{"role": str(m["role"]), "content": str(m["content"])} for m in question]


def _key(model: str, law: dict[str, Any], text: str) -> str:
    body = json.dumps([model, law, text], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _finished(run: Path) -> bool:
    file = run / "trueline" / "summary.json"
    try:
        return bool(json.loads(file.read_text(encoding="utf-8"))["status"] == "finished")
    except (OSError, ValueError, KeyError):
        return False


def _checkpoints(run: Path, evaluations: int, request: Request) -> Iterator[Local]:
    """The model at `evaluations` evenly spaced checkpoints of its run, the last one its end."""
    local = Local(str(run), request)
    if evaluations > 1:
        folder = run / "trueline" / "checkpoints"
        steps = sorted(int(f.name.removeprefix("step-")) for f in folder.glob("step-*") if f.name[5:].isdigit())
        if len(steps) < evaluations:
            raise TruelineError(f"'{folder}' holds {len(steps)} checkpoints; {evaluations} evaluations were asked for.")
        places = [round((i + 1) * len(steps) / evaluations) - 1 for i in range(evaluations)]
        for step in [steps[p] for p in places[:-1]]:
            tensors, _ = checkpoint.load(folder / f"step-{step}")
            held = dict(local.loaded.model.named_parameters())
            if set(tensors["model"]) - set(held):
                raise TruelineError(
                    f"'{run}': the checkpoint of step {step} does not fit the model. Remove the folder and run again."
                )
            with torch.no_grad():
                for name, value in tensors["model"].items():
                    held[name].copy_(value)
            yield local
        local = Local(str(run), request)
    yield local
