"""What one node counts of the requests that it forwards, for its load reports. Pure.

Hot paths add to plain integers; the reporter takes all of them once a second and begins anew.
There are as many counts as demand classes in use times their regions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envoy.config.endpoint.v3 import load_report_pb2

# The clusters of a report are demand classes, and these for tenants that have a limit.
TENANT = "tenant/"
TOKENS = "tokens"
FIRST_TOKEN = "first_token_ms"  # noqa: S105


class RegionCount:
    """Of one class, in one region."""

    __slots__ = ("failed", "first_token_s", "first_tokens", "issued", "ok", "tokens")

    def __init__(self) -> None:
        self.issued = 0  # requests sent there, each attempt counting
        self.ok = 0  # answered whole
        self.failed = 0  # by the region's fault, or its path's
        self.tokens = 0  # of answers that are whole
        self.first_tokens = 0
        self.first_token_s = 0.0  # how long all of those took together


class ClassCount:
    """Of one class. `lost`: answered with a 5xx in the end."""

    __slots__ = ("lost", "regions")

    def __init__(self) -> None:
        self.lost = 0
        self.regions: dict[str, RegionCount] = {}


class LoadCounts:
    """All of a node's. `at` finds what to add to; do not keep it over a second."""

    __slots__ = ("classes",)

    def __init__(self) -> None:
        self.classes: dict[str, ClassCount] = {}

    def of(self, cls: str) -> ClassCount:
        count = self.classes.get(cls)
        if count is None:
            count = self.classes[cls] = ClassCount()
        return count

    def at(self, cls: str, region: str) -> RegionCount:
        held = self.classes.get(cls)
        regions = held.regions if held is not None else self.of(cls).regions
        count = regions.get(region)
        if count is None:
            count = regions[region] = RegionCount()
        return count

    def take(self) -> dict[str, ClassCount]:
        """What was counted since the last call."""
        taken, self.classes = self.classes, {}
        return taken


def encode(
    classes: Mapping[str, ClassCount], asked: Mapping[str, int], interval_s: float
) -> list[Any]:
    """As `envoy.config.endpoint.v3.ClusterStats`, over the last `interval_s`.

    `asked`: tenant with a limit -> requests that asked, whatever became of them.
    """
    out = []
    for name, count in classes.items():
        stats = _cluster(name, interval_s)
        stats.total_dropped_requests = count.lost
        for region, at in count.regions.items():
            locality = stats.upstream_locality_stats.add()
            locality.locality.region = region
            locality.total_issued_requests = at.issued
            locality.total_successful_requests = at.ok
            locality.total_error_requests = at.failed
            _metric(locality, TOKENS, at.ok, float(at.tokens))
            _metric(locality, FIRST_TOKEN, at.first_tokens, at.first_token_s * 1e3)
        out.append(stats)
    for tenant, requests in asked.items():
        stats = _cluster(TENANT + tenant, interval_s)
        stats.upstream_locality_stats.add().total_issued_requests = requests
        out.append(stats)
    return out


def _cluster(name: str, interval_s: float) -> Any:
    stats = load_report_pb2.ClusterStats(cluster_name=name)
    stats.load_report_interval.FromMilliseconds(max(1, round(interval_s * 1e3)))
    return stats


def _metric(locality: Any, name: str, count: int, total: float) -> None:
    if count:
        locality.load_metric_stats.add(
            metric_name=name, num_requests_finished_with_metric=count, total_metric_value=total
        )
