"""What /metrics shows, for Prometheus. Labels come from fixed lists: a client cannot make new series."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
COSTS = ("lm_tf", "lm_calls", "rm_tf", "rm_calls", "retries", "discarded_tokens", "failed")


class Metrics:
    """The series of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "trueline_requests", "HTTP requests answered.", ["endpoint", "status"], registry=registry
        )
        self.refused = Counter("trueline_refused", "Requests refused because the server was busy.", registry=registry)
        self.disconnected = Counter(
            "trueline_disconnected", "Clients that left before their answer was complete.", registry=registry
        )
        self.engine_failures = Counter(
            "trueline_engine_failures", "Rounds of the engine that failed as a whole.", registry=registry
        )
        self.prompt_tokens = Counter("trueline_prompt_tokens", "Tokens of prompts answered.", registry=registry)
        self.new_tokens = Counter("trueline_new_tokens", "Tokens of finished answers.", ["method"], registry=registry)
        self.cost = Counter(
            "trueline_cost",
            "What finished answers cost, by kind: token-forwards of language and reward models, calls, retries, "
            "discarded tokens, candidates that a reward could not judge.",
            ["kind", "method"],
            registry=registry,
        )
        self.first_token_seconds = Histogram(
            "trueline_first_token_seconds",
            "From the request to its first token.",
            ["method"],
            buckets=SECONDS,
            registry=registry,
        )
        self.answer_seconds = Histogram(
            "trueline_answer_seconds",
            "From the request to its whole answer.",
            ["method"],
            buckets=SECONDS,
            registry=registry,
        )
        self.round_seconds = Histogram(
            "trueline_round_seconds", "Seconds of one round of the engine.", buckets=SECONDS, registry=registry
        )
        self._rows = Gauge("trueline_rows", "Rows that open requests may take at once.", registry=registry)
        self._waiting = Gauge("trueline_waiting", "Requests that wait for rows.", registry=registry)
        self._jobs = Gauge("trueline_jobs", "HTTP requests that the engine works for.", registry=registry)

    def engine(self, rows: int, waiting: int, jobs: int) -> None:
        """The engine's state after a round."""
        self._rows.set(rows)
        self._waiting.set(waiting)
        self._jobs.set(jobs)

    def text(self) -> bytes:
        return generate_latest(self.registry)
