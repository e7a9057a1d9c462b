"""Counters for whoever runs the server, in Prometheus' text form at `/metrics`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from backends.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client.core import Metric

    from backends.api import TierCounters
    from gateway.ensemble import Ensemble
    from gateway.history import StoredMessage

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
COUNTED = ("hits", "misses", "stored", "evicted", "damaged", "refused", "errors")
HELD = ("blocks", "bytes")


class Metrics:
    """What turns cost, kept here, and what the KV tiers did, asked of the backends."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        by_backend = ("backend",)
        self._turns = Counter(
            "greenroom_turns", "Turns by how they ended", ("backend", "status"), registry=registry
        )
        self._prompt = Counter(
            "greenroom_prompt_tokens", "Tokens of prompts", by_backend, registry=registry
        )
        self._cached = Counter(
            "greenroom_cached_tokens",
            "Prompt tokens restored, by the tier that had them",
            ("backend", "tier"),
            registry=registry,
        )
        self._said = Counter(
            "greenroom_completion_tokens", "Tokens of replies", by_backend, registry=registry
        )
        self._missed = Counter(
            "greenroom_cache_misses",
            "Turns whose prompt was not cached whole, by reason",
            ("backend", "reason"),
            registry=registry,
        )
        self._saved = Counter(
            "greenroom_saved_seconds",
            "Prefill that restores have saved, estimated",
            by_backend,
            registry=registry,
        )
        self._ttft = Histogram(
            "greenroom_ttft_seconds",
            "Time to first token",
            by_backend,
            buckets=SECONDS,
            registry=registry,
        )
        self._restore = Histogram(
            "greenroom_restore_seconds",
            "Time of a turn's restore",
            by_backend,
            buckets=SECONDS,
            registry=registry,
        )

    def count(self, reply: StoredMessage, backend: str) -> None:
        """Takes a reply in its final form into account."""
        status = reply.status.value if reply.status else "unknown"
        self._turns.labels(backend, status).inc()
        stats = reply.stats
        if stats is None:
            return
        self._prompt.labels(backend).inc(stats.prompt_tokens)
        self._said.labels(backend).inc(stats.completion_tokens)
        for tier, tokens in stats.cached_by_tier.items():
            self._cached.labels(backend, tier).inc(tokens)
        if stats.miss:
            self._missed.labels(backend, stats.miss).inc()
        self._saved.labels(backend).inc(stats.saved_ms / 1e3)
        self._ttft.labels(backend).observe(stats.ttft_ms / 1e3)
        if stats.cached_tokens:
            self._restore.labels(backend).observe(stats.restore_ms / 1e3)

    async def render(self, ensemble: Ensemble) -> bytes:
        """Everything, now. A backend that is not running has no tiers to show."""
        tiers: dict[str, tuple[TierCounters, ...]] = {}
        for standby in ensemble:
            if standby.capabilities is not None:
                try:
                    tiers[standby.backend.name] = await standby.backend.tiers()
                except BackendError:
                    continue
        registry = CollectorRegistry()
        registry.register(_Tiers(tiers))
        return generate_latest(self._registry) + generate_latest(registry)


class _Tiers:
    """One look at the tiers' counters, as Prometheus' library collects it."""

    def __init__(self, tiers: Mapping[str, Iterable[TierCounters]]) -> None:
        self._tiers = tiers

    def collect(self) -> Iterable[Metric]:
        labels = ("backend", "tier")
        for name in (*COUNTED, *HELD):
            help_ = f"Blocks: {name}" if name in COUNTED else f"KV held now: {name}"
            family: CounterMetricFamily | GaugeMetricFamily
            if name in COUNTED:
                family = CounterMetricFamily(f"greenroom_kv_{name}", help_, labels=labels)
            else:
                family = GaugeMetricFamily(f"greenroom_kv_{name}", help_, labels=labels)
            for backend, counters in self._tiers.items():
                for tier in counters:
                    family.add_metric((backend, tier.name), getattr(tier, name))
            yield family
