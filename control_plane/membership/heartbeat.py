"""A heartbeat as it came over the wire, checked. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection

import msgspec
from google.protobuf.message import DecodeError
from msgspec import Struct
from xds.data.orca.v3 import orca_load_report_pb2 as orca

from control_plane.directives.observed import CoreReport, Member, RegionSeen
from control_plane.membership.errors import InvalidHeartbeat
from topology.paths import PathChange
from topology.wire import ladder_reports, path_reports
from topology.wire.gen.tradewind.v1 import membership_pb2 as pb
from topology.wire.ladder_reports import StandingReport
from topology.wire.path_reports import PathReport

INCARNATION_MAX = 64  # characters
VERSION_MAX = 100  # characters
ADDRESSES_MAX = 16
ADDRESS_MAX = 300  # characters: the longest host name and a port
REGIONS_MAX = 512
REGION_MAX = 63  # characters, as of any name
ORCA_MAX = 16 * 1024  # bytes
FIGURE_MAX = 1e12  # beyond it no load and no rate is believed
RTT_MAX_MS = 600_000.0


class Heartbeat(Struct, frozen=True):
    """What a node says of itself, within bounds. `load`: of a core, where it told any. `paths` and
    `queue_ms` by region; `events`: the changes of ways that it had not told before; `ladder`:
    where an edge stands, by tier."""

    node: str
    incarnation: str
    lease: int
    version: str
    addresses: tuple[str, ...]
    healthy: bool
    draining: bool
    leaving: bool
    regions: dict[str, RegionSeen]
    load: Load | None
    paths: dict[str, tuple[PathReport, ...]] = {}
    queue_ms: dict[str, float] = {}
    events: tuple[PathChange, ...] = ()
    ladder: tuple[StandingReport, ...] = ()

    def of_regions(self, known: Collection[str]) -> Heartbeat:
        """The same without what it says of regions that are not known: nobody's memory is filled
        with them."""
        relays = {path.relay for paths in self.paths.values() for path in paths} - {""}
        named = relays.union(self.regions, (event.region for event in self.events))
        if all(region in known for region in named):
            return self
        return msgspec.structs.replace(
            self,
            regions={region: seen for region, seen in self.regions.items() if region in known},
            queue_ms={region: ms for region, ms in self.queue_ms.items() if region in known},
            paths={
                region: tuple(path for path in paths if not path.relay or path.relay in known)
                for region, paths in self.paths.items()
                if region in known
            },
            events=tuple(event for event in self.events if event.region in known),
        )

    def member(self, role: str, name: str, since_s: float) -> Member:
        """As the registry keeps it. A node that drains takes nothing new: it is not healthy."""
        return Member(
            node=self.node,
            role=role,
            name=name,
            incarnation=self.incarnation,
            addresses=self.addresses,
            version=self.version,
            healthy=self.healthy and not self.draining,
            since_s=since_s,
            draining=self.draining,
        )

    def report(self, region: str, at_s: float) -> CoreReport | None:
        """As the director reads it; None where the core told no load."""
        if self.load is None:
            return None
        return CoreReport(
            node=self.node,
            region=region,
            at_s=at_s,
            utilisation=self.load.utilisation,
            tokens_per_s=self.load.tokens_per_s,
            running=self.load.running,
            waiting=self.load.waiting,
            healthy=self.healthy,
            draining=self.draining,
        )


class Load(Struct, frozen=True):
    """From ORCA's report (xds.data.orca.v3.OrcaLoadReport)."""

    utilisation: float
    tokens_per_s: float
    running: float
    waiting: float


def read(message: pb.Heartbeat) -> Heartbeat:
    """Raises `InvalidHeartbeat` with every mistake."""
    problems = [
        *_text_problems(message),
        *_region_problems(message),
        *path_reports.event_problems(message.path_events),
        *ladder_reports.standing_problems(message.ladder),
    ]
    load, load_problems = _load(message.orca)
    problems += load_problems
    if problems:
        raise InvalidHeartbeat(tuple(problems))
    return Heartbeat(
        node=message.node_id,
        incarnation=message.incarnation,
        lease=message.lease,
        version=message.version,
        addresses=tuple(message.addresses),
        healthy=message.healthy,
        draining=message.draining,
        leaving=message.leaving,
        regions={
            seen.region: RegionSeen(seen.reachable, seen.rtt_ms if seen.rtt_ms > 0 else None)
            for seen in message.regions
        },
        load=load,
        paths={
            seen.region: path_reports.read_paths(seen) for seen in message.regions if seen.paths
        },
        queue_ms={s.region: s.queue_ms for s in message.regions if s.queue_ms},
        events=path_reports.read_events(message.path_events),
        ladder=ladder_reports.read_standings(message.ladder),
    )


def _text_problems(message: pb.Heartbeat) -> list[str]:
    problems = []
    if (
        not 1 <= len(message.incarnation) <= INCARNATION_MAX
        or not message.incarnation.isprintable()
    ):
        problems.append(f"incarnation: 1 to {INCARNATION_MAX} characters")
    if len(message.version) > VERSION_MAX or not message.version.isprintable():
        problems.append(f"version: at most {VERSION_MAX} characters")
    if len(message.addresses) > ADDRESSES_MAX:
        problems.append(f"addresses: {len(message.addresses)}; at most {ADDRESSES_MAX}")
    elif any(len(a) > ADDRESS_MAX or not a.isprintable() for a in message.addresses):
        problems.append(f"addresses: at most {ADDRESS_MAX} characters each")
    if message.lease < 0:
        problems.append("lease: not below 0")
    return problems


def _region_problems(message: pb.Heartbeat) -> list[str]:
    count = len(message.regions)
    if count > REGIONS_MAX:
        return [f"regions: {count}; at most {REGIONS_MAX}"]
    problems = []
    if any(not 1 <= len(s.region) <= REGION_MAX for s in message.regions):
        problems.append(f"regions: names of 1 to {REGION_MAX} characters")
    if any(not 0 <= s.rtt_ms <= RTT_MAX_MS for s in message.regions):
        problems.append(f"regions: rtt_ms from 0 to {RTT_MAX_MS:g}")
    return problems + path_reports.path_problems(message.regions)


def _load(data: bytes) -> tuple[Load | None, list[str]]:
    if not data:
        return None, []
    if len(data) > ORCA_MAX:
        return None, [f"orca: {len(data)} bytes; at most {ORCA_MAX}"]
    try:
        report = orca.OrcaLoadReport.FromString(data)
    except DecodeError:
        return None, ["orca: not an xds.data.orca.v3.OrcaLoadReport"]
    named = report.named_metrics
    load = Load(
        utilisation=report.application_utilization,
        tokens_per_s=named.get("tradewind.tokens_per_s", 0.0),
        running=named.get("tradewind.running", 0.0),
        waiting=named.get("tradewind.waiting", 0.0),
    )
    figures = (load.utilisation, load.tokens_per_s, load.running, load.waiting)
    if not all(math.isfinite(f) and 0 <= f <= FIGURE_MAX for f in figures):
        return None, [f"orca: figures from 0 to {FIGURE_MAX:g}"]
    return load, []
