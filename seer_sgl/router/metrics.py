"""The counts of core and draft servers as Prometheus metrics, read when they are asked for."""

from collections.abc import Iterator
from typing import TypeVar

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from seer_sgl.router.core import RouterCore
from seer_sgl.router.drafts import DraftWatch

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


def registry_of(core: RouterCore, drafts: DraftWatch) -> CollectorRegistry:
    """A registry of this router alone; the library's global one would mix routers in one process."""
    registry = CollectorRegistry()
    registry.register(_CoreCollector(core))
    registry.register(_DraftCollector(drafts))
    return registry
