"""What `tradewind paths` prints, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from control_plane.admin.errors import AdminError
from control_plane.cli.output import ago, line, table_lines, when
from topology.paths import name_of
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb
from topology.wire.gen.tradewind.v1 import membership_pb2

_HEADINGS = (
    "EDGE", "REGION", "", "PATH", "STATE", "RTT", "JITTER", "LOSS OUT/BACK", "EXCHANGES", "SINCE",
    "WHY",
)  # fmt: skip
_NAMED = 10  # edges in a note


class Wanted(Struct, frozen=True):
    """What was asked for."""

    request: pb.PathsRequest
    events: bool


def lines_of(found: pb.PathsResponse, wanted: Wanted) -> list[str]:
    """The table, of paths or of changes."""
    if wanted.events:
        return _changes(found)
    rows = [
        row
        for edge in found.edges
        for region in edge.regions
        for row in _rows(edge, region, found.now_s)
    ]
    if not rows:
        return ["no path is known"]
    return table_lines(_HEADINGS, rows)


def _rows(
    edge: pb.EdgePaths, region: membership_pb2.RegionSeen, now_s: float
) -> list[tuple[object, ...]]:
    name = _edge(edge.node)
    if not region.paths:  # a worker that tells of none
        state = "reached" if region.reachable else "not reached"
        rtt = _ms(region.rtt_ms)
        return [(name, region.region, " ", "?", state, rtt, "", "", "", "", "")]
    in_use = region.paths[0] if region.paths[0].up and region.reachable else None
    rows: list[tuple[object, ...]] = []
    for path in region.paths:
        why = path.why
        if path is region.paths[0] and path.up and not region.reachable:
            why = f"not used: the region does not serve; {why}"
        loss = f"{_share(path.loss_out)}/{_share(path.loss_back)}"
        rows.append(
            (
                name,
                region.region,
                "*" if path is in_use else " ",
                name_of(path.relay),
                path.state if path.up or path.state != "up" else "down",
                _ms(path.measured_rtt_ms or path.rtt_ms),
                _ms(path.jitter_ms) if path.jitter_ms >= 0 else "",
                loss if path.loss_out >= 0 or path.loss_back >= 0 else "",
                path.exchanges or "",
                ago(path.since_s, now_s),
                why,
            )
        )
    return rows


def _changes(found: pb.PathsResponse) -> list[str]:
    rows = [
        (when(event.at_s), _edge(edge.node), event.region, event.before or "none",
         event.after or "none", event.why)
        for event, edge in sorted(
            ((event, edge) for edge in found.edges for event in edge.events),
            key=lambda pair: (pair[0].at_s, pair[1].node),
        )
    ]  # fmt: skip
    if not rows:
        return ["no path has changed since the edges' workers started"]
    return table_lines(("TIME", "EDGE", "REGION", "BEFORE", "AFTER", "WHY"), rows)


def line_of(at_s: float, node: str, region: str, before: str, after: str, why: str) -> str:
    """One change."""
    way = f"{before or 'none'} -> {after or 'none'}"
    return line(f"{when(at_s)} {_edge(node)} to {region}: {way}: {why}")


def notes_of(found: pb.PathsResponse, errors: Sequence[AdminError]) -> list[str]:
    """What the table lacks, and why."""
    notes = [f"note: a replica was not heard: {line(error.message)}" for error in errors]
    if found.unheard:
        more = f" and {len(found.unheard) - _NAMED} more" if len(found.unheard) > _NAMED else ""
        whom = "any replica that answered" if errors else "any replica that was asked"
        notes.append(
            f"note: not heard by {whom}: {', '.join(found.unheard[:_NAMED])}{more}"
            + (" (one that did not answer may hear them)" if errors else "")
        )
    if found.omitted:
        notes.append(
            f"note: {found.omitted} nodes are left out for length: ask for one --edge or --region"
        )
    return notes


def as_data(found: pb.PathsResponse, errors: Sequence[AdminError]) -> dict[str, Any]:
    """As `-o json` prints it; null where nothing was measured."""
    return {
        "now_s": found.now_s,
        "edges": [_edge_data(edge) for edge in found.edges],
        "unheard": list(found.unheard),
        "omitted": found.omitted,
        "unreachable": [error.message for error in errors],
    }


def _edge_data(edge: pb.EdgePaths) -> dict[str, Any]:
    return {
        "edge": edge.node.split("/")[1],
        "node": edge.node,
        "heard_s": edge.heard_s,
        "regions": [
            {
                "region": region.region,
                "reachable": region.reachable,
                "queue_ms": region.queue_ms,
                "paths": [_path_data(region, path) for path in region.paths],
            }
            for region in edge.regions
        ],
        "events": [
            {
                "at_s": event.at_s,
                "region": event.region,
                "before": event.before or None,
                "after": event.after or None,
                "why": event.why,
            }
            for event in edge.events
        ],
    }


def _path_data(region: membership_pb2.RegionSeen, path: membership_pb2.PathSeen) -> dict[str, Any]:
    return {
        "path": name_of(path.relay),
        "relay": path.relay or None,
        "in_use": path.up and region.reachable and path == region.paths[0],
        "up": path.up,
        "state": path.state,
        "rtt_ms": path.rtt_ms or None,
        "measured_rtt_ms": path.measured_rtt_ms or None,
        "extra_ms": path.extra_ms,
        "jitter_ms": path.jitter_ms if path.jitter_ms >= 0 else None,
        "loss_out": path.loss_out if path.loss_out >= 0 else None,
        "loss_back": path.loss_back if path.loss_back >= 0 else None,
        "exchanges": path.exchanges,
        "since_s": path.since_s or None,
        "why": path.why,
    }


def _edge(node: str) -> str:
    return node.partition("/")[2]


def _ms(value_ms: float) -> str:
    if value_ms <= 0:
        return ""
    return f"{value_ms:.1f} ms" if value_ms < 10 else f"{value_ms:.0f} ms"


def _share(value: float) -> str:
    if value < 0:
        return "?"
    return f"{100 * value:.0f}%" if value >= 0.01 or value == 0 else f"{100 * value:.1f}%"
