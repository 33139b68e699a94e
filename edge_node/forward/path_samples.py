"""The figures of every way to every region, as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterable

from edge_node.forward.path import Path
from edge_node.forward.replicas import Replicas
from edge_node.forward.tunnels import Tunnels
from runtime.metrics import Sample

_TUNNEL = "tradewind_edge_tunnel_"


def path_samples(tunnels: Tunnels) -> Iterable[Sample]:
    """Labels: `region`, and `path`: `direct` or `via <relay>`. There are as many as the
    configuration has regions, times one and the relays that are kept."""
    tunnels.views()
    for path in tunnels.paths():
        yield from _of(path)
    for road in tunnels.roads():
        labels = {"region": road.region}
        up = sum(view.up for view in road.found.views)
        text = "Cores that are reached straight."
        yield Sample("tradewind_edge_region_cores", text, road.direct.live, labels)
        text = "Those of them that are left alone since they fail."
        alone = len(road.direct.left_alone())
        yield Sample("tradewind_edge_region_cores_left_alone", text, alone, labels)
        yield Sample("tradewind_edge_region_paths_up", "Ways to it that live.", up, labels)
        doubted = bool(tunnels.doubted(road.region))
        text = "Whether it is reached and does not serve, so that others are asked."
        yield Sample("tradewind_edge_region_doubted", text, doubted, labels)
        text = "How long it says that requests wait there."
        queue_s = road.found.queue_ms / 1000
        yield Sample("tradewind_edge_region_queue_seconds", text, queue_s, labels)
    text = "Times that a region, or one of its cores, was left alone since it failed."
    yield Sample("tradewind_edge_outliers_total", text, tunnels.left_alone_total)
    for (region, kind), count in tunnels.log.counts.items():
        labels = {"region": region, "kind": kind}
        text = "Times that requests to it began to take another way."
        yield Sample("tradewind_edge_path_changes_total", text, count, labels)


def _of(path: Path | Replicas) -> Iterable[Sample]:
    """Of several cores: sums, and the round trip to the nearest."""
    estimate, tunnels = path.estimate, list(path.tunnels())
    if estimate is None:
        return
    labels = {"region": path.region, "path": path.name}
    all_of = [tunnel.status for tunnel in tunnels]
    connected = float(sum(tunnel.connected for tunnel in tunnels))
    figures = (
        ("connected", "Cores that requests can be sent to this way.", connected),
        ("rtt_seconds", "Round-trip time of it.", (estimate.rtt_ms or 0.0) / 1000),
        ("jitter_seconds", "How much that varies.", (estimate.jitter_ms or 0.0) / 1000),
        ("loss_out_ratio", "Share of what we send that is lost.", estimate.loss_out or 0.0),
        ("loss_back_ratio", "Share of what is sent to us that is lost.", estimate.loss_back or 0.0),
        ("exchanges", "Open exchanges.", sum(s.open_exchanges for s in all_of)),
        ("exchanges_total", "Exchanges begun.", sum(s.exchanges for s in all_of)),
        ("dials_total", "Attempts to connect.", sum(s.connects for s in all_of)),
        ("connects_total", "Those that succeeded.", sum(s.connected for s in all_of)),
        ("cuts_total", "Working paths that died.", sum(s.path_downs for s in all_of)),
        (
            "revived_total",
            "Times that a silent one answered again.",
            sum(s.revived for s in all_of),
        ),
        ("refused_total", "Exchanges beyond its limit.", sum(s.refused_locally for s in all_of)),
    )
    for name, text, value in figures:
        yield Sample(_TUNNEL + name, text, value, labels)
