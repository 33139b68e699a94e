"""What this replica sees by itself: load reports, heartbeats and acknowledgements, as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from control_plane.catalog import Catalog
from control_plane.directives.observed import (
    CoreReport,
    EdgeReport,
    NodeState,
    Observed,
    RegionSeen,
)
from control_plane.discovery.session import Session
from runtime.clock import Clock


class Loads(Protocol):
    """Load reports (LRS)."""

    def edges(self) -> Mapping[str, EdgeReport]: ...


class Heartbeats(Protocol):
    """Heartbeats of members."""

    def seen(self) -> Mapping[str, Mapping[str, RegionSeen]]: ...

    def cores(self) -> Mapping[str, CoreReport]: ...


class Sessions(Protocol):
    """Discovery's nodes."""

    @property
    def sessions(self) -> Iterable[Session]: ...


class Local:
    """Puts the parts together when asked."""

    def __init__(
        self,
        loads: Loads,
        heartbeats: Heartbeats,
        discovery: Sessions,
        catalog: Catalog,
        clock: Clock,
    ) -> None:
        self._loads = loads
        self._heartbeats = heartbeats
        self._discovery = discovery
        self._catalog = catalog
        self._clock = clock

    def observe(self) -> Observed:
        now_s = self._clock.wall()
        stale = self._catalog.view.stale_since_s is not None
        return Observed(
            at_s=now_s,
            edges=merged(self._loads.edges(), self._heartbeats.seen(), now_s),
            cores=dict(self._heartbeats.cores()),
            nodes={s.node_id: _node(s, stale) for s in self._discovery.sessions},
        )


def _node(session: Session, stale: bool) -> NodeState:
    return NodeState(
        node=session.node_id,
        connected=session.connected,
        since_s=session.since_s,
        acked_revision=session.acked_revision,
        acked_directive=session.acked_directive,
        nack_revision=session.nack.revision if session.nack else 0,
        nack_reason=session.nack.reason if session.nack else "",
        stale=stale,
        staged=session.staged,
    )


def merged(
    loads: Mapping[str, EdgeReport], seen: Mapping[str, Mapping[str, RegionSeen]], now_s: float
) -> dict[str, EdgeReport]:
    """Load reports with the reachability and distance that heartbeats told. Either may lack."""
    out: dict[str, EdgeReport] = {}
    for node in {*loads, *(n for n in seen if n.startswith("edge/"))}:
        edge = node.split("/")[1]
        report = loads.get(node) or EdgeReport(node=node, edge=edge, at_s=now_s)
        regions = dict(report.regions)
        for region, view in seen.get(node, {}).items():
            held = regions.get(region)
            regions[region] = (
                view
                if held is None
                else msgspec.structs.replace(held, reachable=view.reachable, rtt_ms=view.rtt_ms)
            )
        seen_at_s = now_s if node in seen else 0.0
        out[node] = msgspec.structs.replace(report, regions=regions, seen_at_s=seen_at_s)
    return out
