"""Prometheus metrics: one registry a process, text exposition, process figures.

Hot paths count in plain integers; a collector reads them when somebody scrapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, str]


class Sample:
    """One figure to expose: counters end in `_total`, anything else is a gauge."""

    __slots__ = ("help", "labels", "name", "value")

    def __init__(
        self,
        name: str,
        help: str,  # noqa: A002 - Prometheus' own name for it
        value: float,
        labels: Labels | None = None,
    ) -> None:
        self.name = name
        self.help = help
        self.value = value
        self.labels = labels or {}


class _FromSamples(Collector):
    def __init__(self, read: Callable[[], Iterable[Sample]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for sample in self._read():
            family = families.get(sample.name)
            if family is None:
                kind = CounterMetricFamily if sample.name.endswith("_total") else GaugeMetricFamily
                family = kind(sample.name, sample.help, labels=list(sample.labels))
                families[sample.name] = family
            family.add_metric(list(sample.labels.values()), sample.value)  # type: ignore[attr-defined]
        return families.values()


class Metrics:
    """A registry that reads its figures from callbacks at scrape time."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

    def watch(self, read: Callable[[], Iterable[Sample]]) -> None:
        """Expose whatever `read` returns at each scrape."""
        self.registry.register(_FromSamples(read))

    def expose(self) -> bytes:
        return generate_latest(self.registry)
