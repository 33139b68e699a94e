"""A load report as it came over the wire (LRS), checked. Pure."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from topology.load import FIRST_TOKEN, TENANT, TOKENS

CLUSTERS_MAX = 4_096  # in a report
LOCALITIES_MAX = 256  # in a cluster
NAME_MAX = 4_096  # characters; a demand class names its regions
_RATE_MAX = 1e9  # per second: more is no load but a mistake
INTERVAL_MIN_S, INTERVAL_MAX_S = 0.1, 120.0  # that a report may say it covers


class BadReport(Exception):
    """A load report makes no sense; the text says where."""


class Counted(Struct):
    """One region, or the whole, of one class in one report; all are sums, not rates."""

    requests: float = 0.0
    errors: float = 0.0
    tokens: float = 0.0
    first_tokens: float = 0.0
    first_token_ms: float = 0.0


class Reported(Struct):
    """What one report says, by demand class, by region, by both, and by tenant with a limit."""

    interval_s: float  # 0: it did not say
    classes: dict[str, Counted]
    regions: dict[str, Counted]
    parts: dict[tuple[str, str], Counted]
    tenants: dict[str, Counted]


def read(request: Any) -> Reported | None:
    """A report, checked; None where it covers no time: the first request of a stream."""
    clusters = request.cluster_stats
    if len(clusters) > CLUSTERS_MAX:
        raise BadReport(f"{len(clusters)} clusters in a report; at most {CLUSTERS_MAX}")
    if not len(clusters):
        # A node with nothing to tell is there all the same.
        return Reported(0.0, {}, {}, {}, {}) if not request.HasField("node") else None
    interval_ms = max(stats.load_report_interval.ToMilliseconds() for stats in clusters)
    if not INTERVAL_MIN_S <= interval_ms / 1e3 <= INTERVAL_MAX_S:
        raise BadReport(
            f"load_report_interval of {interval_ms} ms;"
            f" from {INTERVAL_MIN_S:g} s to {INTERVAL_MAX_S:g} s"
        )
    report = Reported(interval_ms / 1e3, {}, {}, {}, {})
    for index, stats in enumerate(clusters):
        where = f"cluster_stats[{index}]"
        name = stats.cluster_name
        if not name or len(name) > NAME_MAX:
            raise BadReport(f"{where}: a cluster_name of {len(name)} characters; 1 to {NAME_MAX}")
        if len(stats.upstream_locality_stats) > LOCALITIES_MAX:
            raise BadReport(f"{where}: more than {LOCALITIES_MAX} localities")
        limit = _RATE_MAX * report.interval_s
        if name.startswith(TENANT):
            asked = sum(at.total_issued_requests for at in stats.upstream_locality_stats)
            report.tenants[name.removeprefix(TENANT)] = Counted(_sane(asked, limit, where))
        else:
            _add(report, name, stats, limit, where)
    return report


def _add(report: Reported, name: str, stats: Any, limit: float, where: str) -> None:
    lost = _sane(stats.total_dropped_requests, limit, where)
    whole = report.classes.setdefault(name, Counted())
    requests = lost
    for locality in stats.upstream_locality_stats:
        region = locality.locality.region
        if len(region) > NAME_MAX:
            raise BadReport(f"{where}: a region's name of {len(region)} characters")
        at = _counted(locality, limit, where)
        # A failed attempt is tried elsewhere, and counts there, or is lost, and counts as that.
        requests += at.requests - at.errors
        whole.tokens += at.tokens
        for held in (
            report.parts.setdefault((name, region), Counted()),
            report.regions.setdefault(region, Counted()),
        ):
            held.requests += at.requests
            held.errors += at.errors
            held.tokens += at.tokens
            held.first_tokens += at.first_tokens
            held.first_token_ms += at.first_token_ms
    whole.requests += max(requests, 0.0)
    whole.errors += lost


def _counted(locality: Any, limit: float, where: str) -> Counted:
    finished = locality.total_successful_requests + locality.total_error_requests
    counted = Counted(
        requests=_sane(locality.total_issued_requests or finished, limit, where),
        errors=_sane(locality.total_error_requests, limit, where),
    )
    if len(locality.load_metric_stats) > LOCALITIES_MAX:
        raise BadReport(f"{where}: more than {LOCALITIES_MAX} metrics")
    for metric in locality.load_metric_stats:
        if metric.metric_name == TOKENS:
            counted.tokens = _sane(metric.total_metric_value, limit, where)
        elif metric.metric_name == FIRST_TOKEN:
            counted.first_tokens = _sane(metric.num_requests_finished_with_metric, limit, where)
            counted.first_token_ms = _sane(metric.total_metric_value, 1e6 * limit, where)
    return counted


def _sane(value: float, limit: float, where: str) -> float:
    if not 0.0 <= value <= limit:  # false for NaN too
        raise BadReport(f"{where}: a count of {value:g}; from 0 to {limit:g}")
    return float(value)
