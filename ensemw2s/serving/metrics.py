"""Figures of a replica for Prometheus, and those of several replicas as one page."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:  # the front merges pages, and has no use for torch
    from ensemw2s.ensemble.engine import Engine

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class ReplicaMetrics:
    """What a replica of a model counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        common: dict[str, Any] = {"namespace": "ensemw2s", "registry": self.registry}
        self.requests = Counter("requests", "Answers that ended, by how.", ["outcome"], **common)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of prompts that were read.", **common)
        self.tokens = Counter("completion_tokens", "Tokens that came out.", **common)
        self.proposed = Counter("draft_tokens_proposed", "Tokens that drafts proposed.", **common)
        self.accepted = Counter("draft_tokens_accepted", "Of these, tokens that the ensemble chose.", **common)
        self.acceptance = Gauge("draft_acceptance_rate", "Share of the proposed tokens that were accepted.", **common)
        self.running = Gauge("running_requests", "Requests that have a slot.", **common)
        self.waiting = Gauge("waiting_requests", "Requests that wait for one.", **common)
        self.first = Histogram("time_to_first_token_seconds", "From request to first piece.", buckets=SECONDS, **common)
        self.between = Histogram("time_between_tokens_seconds", "Between tokens.", buckets=SECONDS, **common)
        self.whole = Histogram("request_seconds", "From request to last piece.", buckets=SECONDS, **common)
        self._seen = (0, 0, 0, 0)

    def after_step(self, engine: Engine) -> None:
        """Takes over what the engine counted; on the engine's thread."""
        c = engine.counters
        now = (c.prompt_tokens, c.tokens, c.proposed, c.accepted)
        if now < self._seen:  # another engine took over
            self._seen = (0, 0, 0, 0)
        for metric, new, old in zip(
            (self.prompt_tokens, self.tokens, self.proposed, self.accepted), now, self._seen, strict=True
        ):
            metric.inc(max(0, new - old))
        self._seen = now

    def watch(self) -> Watch:
        """For one answer, from now on."""
        return Watch(self)

    def text(self, engine: Engine) -> str:
        """In Prometheus' text format, with what the engine has to do now."""
        self.running.set(engine.running)
        self.waiting.set(engine.waiting)
        self.acceptance.set(engine.counters.acceptance or 0.0)
        return generate_latest(self.registry).decode()


class Watch:
    """Counts one answer.

    Attributes:
        outcome: How it ended.
    """

    def __init__(self, metrics: ReplicaMetrics) -> None:
        self._metrics, self.outcome = metrics, "cancelled"
        self._began = time.perf_counter()
        self._last: float | None = None

    def piece(self, count: int, finish: str | None) -> None:
        """Counts a piece with this many tokens."""
        now = time.perf_counter()
        if self._last is None:
            self._metrics.first.observe(now - self._began)
        elif count:
            self._metrics.between.observe((now - self._last) / count)
        self._last = now
        if finish is not None:
            self.outcome = finish

    def end(self) -> None:
        """Counts the end of the answer."""
        self._metrics.requests.labels(self.outcome).inc()
        self._metrics.whole.observe(time.perf_counter() - self._began)


def merged(pages: Iterable[tuple[dict[str, str], str]]) -> str:
    """Pages of several replicas as one: each sample gets the labels of its page.

    Args:
        pages: Labels and text of each.
    """
    families: dict[str, Metric] = {}
    for labels, page in pages:
        for family in text_string_to_metric_families(page):
            into = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                into.samples.append(sample._replace(labels={**labels, **sample.labels}))

    class EngineMetrics:
        def collect(self) -> Iterable[Metric]:
            return families.values()

    registry = CollectorRegistry(auto_describe=False)
    registry.register(EngineMetrics())
    return generate_latest(registry).decode()
