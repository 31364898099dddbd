"""The application: endpoints of the OpenAI API, and what Trueline adds to them.

POST /v1/chat/completions, /v1/completions    answers, whole or streamed
POST /v1/score                                rewards of given responses
GET  /v1/models, /v1/alignment/methods        what may be asked for
GET  /health, /metrics, /                     for supervisors, Prometheus and people
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from importlib import resources
from typing import Any, TypeVar

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from trueline import __version__
from trueline.errors import TruelineError, nearest
from trueline.serving.answers import Answer, ChatAnswer, CompletionAnswer
from trueline.serving.choices import Vocabulary, total_cost
from trueline.serving.errors import ApiError, failed, refused
from trueline.serving.host import Host
from trueline.serving.http import EventStream, Guard, Json, encoded, error_response, read_body, unless_gone
from trueline.serving.keys import Keys
from trueline.serving.metrics import COSTS, Metrics
from trueline.serving.prepare import Plan, parse_model, plan_chat, plan_completion, refused_model
from trueline.serving.protocol import ChatRequest, CompletionRequest, Generation, ScoreRequest, parse
from trueline.serving.scheduler import Job, Scheduler

SCORED_AT_ONCE = 8  # responses that are scored between two rounds of the engine
Found = TypeVar("Found")


class Service:
    """The endpoints over one host. `drain` and `close` belong to the server's shutdown."""

    def __init__(self, host: Host):
        self.host = host
        self.metrics = Metrics()
        self.scheduler = Scheduler(
            host.make_engine, limit=host.limits.prompts, metrics=self.metrics, as_run=host.as_run
        )
        self.vocabulary = Vocabulary(host.tokenizer)
        self.created = int(time.time())
        # One thread: tokenising a long prompt must not hold the event loop, and tokenizers do not like company.
        self._tokenising = ThreadPoolExecutor(1, thread_name_prefix="trueline-prompts")

    async def open(self) -> None:
        await self.scheduler.start()

    async def close(self) -> None:
        await self.scheduler.stop()
        self._tokenising.shutdown(wait=False, cancel_futures=True)

    # -- answers -------------------------------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        body = parse(ChatRequest, await read_body(request, self.host.limits))
        plan = await self._beside(lambda: plan_chat(body, self.host))
        return await self._answer(request, body, plan, ChatAnswer)

    async def complete(self, request: Request) -> Response:
        body = parse(CompletionRequest, await read_body(request, self.host.limits))
        plan = await self._beside(lambda: plan_completion(body, self.host))
        return await self._answer(request, body, plan, CompletionAnswer, echo=bool(body.echo))

    async def _answer(
        self, request: Request, body: Generation, plan: Plan, kind: type[Answer], echo: bool = False
    ) -> Response:
        job = await self.scheduler.open(plan.requests)
        answer = kind(replace(plan, requests=job.requests), self.host.tokenizer, self.vocabulary, echo)
        if body.stream:
            counts = body.stream_options is not None and bool(body.stream_options.include_usage)
            return EventStream(self._streamed(job, answer, counts), self._closing(job, answer))
        with self._closing(job, answer):
            await unless_gone(request.receive, self._gathered(job, answer))
        return Json(answer.whole())

    async def _gathered(self, job: Job, answer: Answer) -> None:
        while not job.over:
            answer.keep(await job.next())
            self._check_budget(answer)

    async def _streamed(self, job: Job, answer: Answer, counts: bool) -> AsyncGenerator[bytes]:
        for chunk in answer.opening():
            yield _event(chunk)
        try:
            while not job.over:
                try:
                    async with asyncio.timeout(self.host.limits.keep_alive):
                        batch = await job.next()
                except TimeoutError:
                    yield b": still at work\n\n"
                    continue
                for chunk in answer.chunks(batch):
                    yield _event(chunk)
                self._check_budget(answer)
        except ApiError as error:
            yield _event(error.body())
            return
        if counts:
            yield _event(answer.closing())
        yield b"data: [DONE]\n\n"

    def _check_budget(self, answer: Answer) -> None:
        if answer.over_budget():
            raise ApiError(422, "The budget was reached before the answer was complete.", code="budget_exceeded")

    @contextmanager
    def _closing(self, job: Job, answer: Answer) -> Iterator[None]:
        """End the work when its client is served or gone, and count what it cost."""
        try:
            yield
        finally:
            self.scheduler.close(job)
            self._count(job, answer)

    def _count(self, job: Job, answer: Answer) -> None:
        method = self._label(answer.plan.requests[0].method)
        self.metrics.prompt_tokens.inc(answer.plan.prompt_tokens)
        self.metrics.new_tokens.labels(method).inc(sum(choice.tokens for choice in answer.choices))
        spent = total_cost(answer.choices)
        for kind in COSTS:
            self.metrics.cost.labels(kind, method).inc(spent[kind])
        if job.first_seconds is not None:
            self.metrics.first_token_seconds.labels(method).observe(job.first_seconds)
        if job.over:
            self.metrics.answer_seconds.labels(method).observe(time.monotonic() - job.started)

    def _label(self, method: str) -> str:
        """Compositions count under their search: a client could otherwise make a series of every order of names."""
        loops = [p for p in method.split("+") if self.host.capabilities[p].get("hook", "loop") == "loop"]
        return loops[0] if loops else "plain"

    async def _beside(self, work: Callable[[], Found]) -> Found:
        """Done on the thread that tokenises."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenising, work)

    # -- scores --------------------------------------------------------------------------------------------------------

    async def score(self, request: Request) -> Response:
        body = parse(ScoreRequest, await read_body(request, self.host.limits))
        if body.model is not None and body.model != self.host.name:
            raise refused_model(body.model, self.host)
        names = list(self.host.rewards) if body.rewards is None else body.rewards
        if not names:
            raise refused("The server was started without a reward.", code="no_reward")
        for number, name in enumerate(names):
            if name not in self.host.rewards:
                raise refused(
                    f"There is no reward '{name[:100]}'. {nearest(name[:100], self.host.rewards)}",
                    param=f"rewards[{number}]",
                )
        most = self.host.limits.responses
        if len(body.responses) > most:
            raise refused(f"{len(body.responses)} responses; this server scores {most} at once.", param="responses")
        with self.scheduler.room(1):
            return Json(await unless_gone(request.receive, self._scored(body, names)))

    async def _scored(self, body: ScoreRequest, names: list[str]) -> dict[str, Any]:
        prompt = body.prompt if isinstance(body.prompt, str) else [turn.plain() for turn in body.prompt]
        rewards: dict[str, list[float]] = {name: [] for name in names}
        for start in range(0, len(body.responses), SCORED_AT_ONCE):
            part = body.responses[start : start + SCORED_AT_ONCE]
            for name in names:
                model = self.host.rewards[name]
                try:
                    rewards[name] += await self.scheduler.call(
                        lambda _, model=model, part=part: model.score_text(prompt, part, {})  # type: ignore[misc]
                    )
                except ApiError:
                    raise
                except Exception as error:
                    reason = str(error) if isinstance(error, TruelineError) else type(error).__name__
                    raise failed(f"The reward '{name}' failed: {reason}", code="reward_error") from error
        data = [
            {
                "index": i,
                "object": "score",
                "rewards": {name: v[i] if math.isfinite(v[i]) else None for name, v in rewards.items()},
            }
            for i in range(len(body.responses))
        ]
        calls = len(names) * len(body.responses)
        return {"object": "list", "model": self.host.name, "data": data, "usage": {"reward_calls": calls}}

    # -- what there is -------------------------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        """The policy, and a name for each method that it can answer by."""
        runs = [name for name, facts in self.host.capabilities.items() if facts["runs"]]
        return Json({"object": "list", "data": [self._model(self.host.name), *map(self._alias, runs)]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        parse_model(name, self.host)
        return Json(self._model(name))

    def _alias(self, method: str) -> dict[str, Any]:
        return self._model(f"{self.host.name}@{method}")

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self.created, "owned_by": "trueline"}

    async def methods(self, request: Request) -> Response:
        """Every decoding method: its options, what it needs, and whether this server can run it."""
        data = [{"method": name, **facts} for name, facts in self.host.capabilities.items()]
        return Json(
            {
                "object": "list",
                "data": data,
                "default": {"method": self.host.method, "options": dict(self.host.options)},
                "rewards": list(self.host.rewards),
                "models": list(self.host.models),
                "chat": self.host.chats,
                "model": self.host.name,
            }
        )

    async def health(self, request: Request) -> Response:
        """200 while the engine's thread lives and answers are taken, else 503."""
        well = self.scheduler.alive and not self.scheduler.refusing
        said = {"status": "ok" if well else "unavailable", "open": self.scheduler.open_prompts, "version": __version__}
        return Json(said, status_code=200 if well else 503)

    async def show_metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page(self, request: Request) -> Response:
        """The page for trying a prompt. It asks for nothing but this server."""
        text = resources.files("trueline.serving").joinpath("page", "index.html").read_bytes()
        return Response(text, media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)


PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + encoded(body) + b"\n\n"


def create_app(host: Host, keys: Keys) -> tuple[FastAPI, Service]:
    """The application and its service. The engine is made when the application starts."""
    service = Service(host)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.open()
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(
        title="Trueline", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )
    routes: list[tuple[str, str, Any]] = [
        ("POST", "/v1/chat/completions", service.chat),
        ("POST", "/v1/completions", service.complete),
        ("POST", "/v1/score", service.score),
        ("GET", "/v1/models", service.models),
        ("GET", "/v1/models/{model:path}", service.model),
        ("GET", "/v1/alignment/methods", service.methods),
        ("GET", "/health", service.health),
        ("GET", "/metrics", service.show_metrics),
        ("GET", "/", service.page),
    ]
    for method, path, endpoint in routes:
        app.add_route(path, endpoint, methods=[method])
    app.add_exception_handler(ApiError, lambda _, error: error_response(error))  # type: ignore[arg-type, return-value]
    app.add_exception_handler(HTTPException, _http_error)  # type: ignore[arg-type]
    app.add_middleware(
        Guard,
        keys=keys,
        limits=host.limits,
        metrics=service.metrics,
        endpoints=frozenset(path for _, path, _ in routes),
    )
    return app, service


async def _http_error(request: Request, error: HTTPException) -> Response:
    """Unknown paths and wrong verbs, in the form that clients of this API read."""
    known = {404: "unknown_url", 405: "method_not_allowed"}
    message = f"{error.detail}: {request.method} {request.url.path[:200]}"
    return error_response(
        ApiError(error.status_code, message, code=known.get(error.status_code), headers=dict(error.headers or {}))
    )
