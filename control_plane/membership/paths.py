"""The ways to regions as one edge worker told them, kept while its heartbeats are fresh. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from control_plane.directives.observed import RegionSeen
from control_plane.membership.heartbeat import Heartbeat
from topology.paths import PathChange
from topology.wire.path_reports import EVENTS_MAX, PathReport


class NodePaths(Struct, frozen=True):
    """`paths` by region, in the worker's own order. `events`: how they changed, the newest last."""

    edge: str
    incarnation: str
    heard_s: float  # Unix time of the heartbeat
    regions: Mapping[str, RegionSeen]
    paths: Mapping[str, tuple[PathReport, ...]]
    queue_ms: Mapping[str, float]
    events: tuple[PathChange, ...]


def told(heard: Heartbeat, edge: str, at_s: float, before: NodePaths | None) -> NodePaths:
    """What is known after a heartbeat. A process tells of each change once to each replica; after
    a new start of it, what was before says nothing any more."""
    events: tuple[PathChange, ...] = ()
    if before is not None and before.incarnation == heard.incarnation:
        events = before.events
    if heard.events:
        events = tuple(dict.fromkeys((*events, *heard.events)))[-EVENTS_MAX:]
    return NodePaths(
        edge=edge,
        incarnation=heard.incarnation,
        heard_s=at_s,
        regions=heard.regions,
        paths=heard.paths,
        queue_ms=heard.queue_ms,
        events=events,
    )
