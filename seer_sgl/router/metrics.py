"""The counts of router and draft servers as Prometheus metrics, read when they are asked for."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from seer_sgl.router.core import RouterCore
from seer_sgl.router.drafts import DraftWatch
from seer_sgl.router.http.traffic import BOUNDS_S, Timed, Traffic
from seer_sgl.router.pool import NoPool, PoolKeeper
from seer_sgl.router.roster import Roster

_GAUGES = {
    "waiting": "Requests that wait for an engine",
    "in_flight": "Chunks that run on engines",
    "engines": "Registered engines",
}
_COUNTERS = {
    "chunks": "Chunks dispatched",
    "moved_chunks": "Chunks that went on from another engine",
    "delivered": "Requests delivered to clients",
}


_DRAFT_GAUGES = {
    "groups": "Groups that a draft server holds",
    "requests": "Requests of those groups",
    "held_bytes": "Memory that they take",
    "budget_bytes": "Memory that they may take",
}
_DRAFT_COUNTERS = {
    "calls": "Calls of engines",
    "accepted_tokens": "Tokens that engines generated",
    "duplicate_tokens": "Tokens that came again",
    "sent_words": "32-bit words sent to engines",
    "expired_groups": "Groups that nobody used any more",
    "evicted_groups": "Groups that made room for others",
    "evicted_in_use": "Groups in use that made room: memory is short",
    "malformed": "Messages that were rejected",
    "crashes": "Calls that met a bug",
}
_REFUSED = "refused_"


class _CoreCollector(Collector):
    def __init__(self, core: RouterCore) -> None:
        self._core = core

    def collect(self) -> Iterator[Metric]:
        statistics = self._core.statistics()
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"seer_{name}", text, value=getattr(statistics, name))
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"seer_{name}", text, value=getattr(statistics, name))


class _DraftCollector(Collector):
    def __init__(self, drafts: DraftWatch) -> None:
        self._drafts = drafts

    def collect(self) -> Iterator[Metric]:
        servers, answers = self._drafts.servers, self._drafts.counters
        if not servers:
            return
        up = GaugeMetricFamily(
            "seer_draft_server_up", "Whether a draft server answers", labels=["server"]
        )
        for address in servers:
            up.add_metric([address], float(address in answers))
        yield up
        for name, text in _DRAFT_GAUGES.items():
            gauge = GaugeMetricFamily(f"seer_draft_{name}", text, labels=["server"])
            yield _filled(gauge, name, answers)
        for name, text in _DRAFT_COUNTERS.items():
            counter = CounterMetricFamily(f"seer_draft_{name}", text, labels=["server"])
            yield _filled(counter, name, answers)
        refused = CounterMetricFamily(
            "seer_draft_refused_updates", "Updates that were refused", labels=["server", "reason"]
        )
        for address, counters in answers.items():
            for name, value in counters.items():
                if name.startswith(_REFUSED):
                    refused.add_metric([address, name.removeprefix(_REFUSED)], value)
        yield refused


F = TypeVar("F", GaugeMetricFamily, CounterMetricFamily)


def _filled(family: F, name: str, answers: dict[str, dict[str, float]]) -> F:
    for address, counters in answers.items():
        if name in counters:
            family.add_metric([address], counters[name])
    return family


_POOL_GAUGES = {
    "up": "Whether the KV pool's master answers its keeper",
    "used_bytes": "Memory that KV takes in the pool",
    "capacity_bytes": "Memory of the pool",
    "kept_pages": "Pages of requests that may still go on",
}
_POOL_COUNTERS = {
    "released_pages": "Pages freed as nobody needed them any more",
    "late_pages": "Of these, pages that were written after they had been freed once",
    "errors": "Calls of the store that failed",
}


class _PoolCollector(Collector):
    def __init__(self, pool: NoPool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        if not isinstance(self._pool, PoolKeeper):
            return
        usage = self._pool.usage
        for name, text in _POOL_GAUGES.items():
            yield GaugeMetricFamily(f"seer_pool_{name}", text, value=float(getattr(usage, name)))
        for name, text in _POOL_COUNTERS.items():
            yield CounterMetricFamily(f"seer_pool_{name}", text, value=getattr(usage, name))


class _EngineCollector(Collector):
    """Engines by the names that dashboards of the stock router know."""

    def __init__(self, core: RouterCore, roster: Roster) -> None:
        self._core = core
        self._roster = roster

    def collect(self) -> Iterator[Metric]:
        members = self._roster.members.values()
        pool = GaugeMetricFamily(
            "smg_worker_pool_size",
            "Engines by model",
            labels=["worker_type", "connection_mode", "model"],
        )
        for model, count in Counter(member.card.model for member in members).items():
            pool.add_metric(["regular", "http", model], count)
        yield pool
        health = GaugeMetricFamily(
            "smg_worker_health", "1 where an engine gets traffic", labels=["worker"]
        )
        active = GaugeMetricFamily(
            "smg_worker_requests_active", "Chunks that an engine runs", labels=["worker"]
        )
        for member in members:
            engine = self._core.engines.get(member.engine_id)
            health.add_metric([member.card.url], float(not member.quarantine))
            active.add_metric([member.card.url], len(engine.chunks) if engine else 0)
        yield health
        yield active


_ENDPOINTS = {
    "/generate": "generate",
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
}
_ROUTED = {"router_type": "http", "backend_type": "regular", "connection_mode": "http"}


class _TrafficCollector(Collector):
    """HTTP traffic by the stock router's names and labels."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    def collect(self) -> Iterator[Metric]:
        by_path = ["method", "path"]
        total = CounterMetricFamily("smg_http_requests", "HTTP requests", labels=by_path)
        took = HistogramMetricFamily(
            "smg_http_request_duration_seconds", "How long they took", labels=by_path
        )
        for (method, path), timed in _joined(self._traffic.requests, lambda key: key[:2]).items():
            total.add_metric([method, path], sum(timed.by_bound))
            took.add_metric([method, path], _buckets(timed), timed.total_s)
        yield total
        yield took
        answers = CounterMetricFamily(
            "smg_http_responses", "HTTP answers", labels=["status_code", "error_code"]
        )
        for status, count in sorted(self._traffic.statuses.items()):
            answers.add_metric([str(status), ""], count)
        yield answers
        yield from self._routed()

    def _routed(self) -> Iterator[Metric]:
        labels = [*_ROUTED, "model", "endpoint"]
        total = CounterMetricFamily(
            "smg_router_requests", "Requests to engines", labels=[*labels, "streaming"]
        )
        took = HistogramMetricFamily(
            "smg_router_request_duration_seconds", "How long they took", labels=labels
        )
        routed = {key: timed for key, timed in self._traffic.requests.items() if key[1] in _ENDPOINTS}
        for (path, streams), timed in _joined(routed, lambda key: key[1:]).items():
            values = [*_ROUTED.values(), "default", _ENDPOINTS[path]]
            total.add_metric([*values, str(streams).lower()], sum(timed.by_bound))
        for (path,), timed in _joined(routed, lambda key: key[1:2]).items():
            values = [*_ROUTED.values(), "default", _ENDPOINTS[path]]
            took.add_metric(values, _buckets(timed), timed.total_s)
        yield total
        yield took


def _joined(requests: Mapping[Any, Timed], key_of: Callable[[Any], Any]) -> dict[Any, Timed]:
    found: dict[Any, Timed] = {}
    for key, timed in requests.items():
        known = found.setdefault(key_of(key), Timed())
        known.by_bound = [a + b for a, b in zip(known.by_bound, timed.by_bound, strict=True)]
        known.total_s += timed.total_s
    return found


def _buckets(timed: Timed) -> list[tuple[str, float]]:
    bounds = [*(str(bound) for bound in BOUNDS_S), "+Inf"]
    return list(zip(bounds, map(float, accumulate(timed.by_bound)), strict=True))


def registry_of(
    core: RouterCore, drafts: DraftWatch, roster: Roster, traffic: Traffic, pool: NoPool
) -> CollectorRegistry:
    """A registry of this router alone; the library's global one would mix routers in one process."""
    registry = CollectorRegistry()
    registry.register(_CoreCollector(core))
    registry.register(_DraftCollector(drafts))
    registry.register(_EngineCollector(core, roster))
    registry.register(_TrafficCollector(traffic))
    registry.register(_PoolCollector(pool))
    return registry
