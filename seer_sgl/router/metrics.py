"""The core's counts as Prometheus metrics, read when they are asked for."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from seer_sgl.router.core import RouterCore

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


class _CoreCollector(Collector):
    def __init__(self, core: RouterCore) -> None:
        self._core = core

    def collect(self) -> Iterator[Metric]:
        statistics = self._core.statistics()
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"seer_{name}", text, value=getattr(statistics, name))
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"seer_{name}", text, value=getattr(statistics, name))


def registry_of(core: RouterCore) -> CollectorRegistry:
    """A registry of this router alone; the library's global one would mix routers in one process."""
    registry = CollectorRegistry()
    registry.register(_CoreCollector(core))
    return registry
