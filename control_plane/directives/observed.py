"""What replicas see of the nodes, as the director reads it. Plain data; times are Unix seconds.

Each replica sees the nodes that are connected to it. The director collects what all of them see
and works on the union; for a node that two replicas know, the newer report counts.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Struct


class ClassLoad(Struct, frozen=True):
    """What one edge worker served of one demand class, per second, lately."""

    requests_per_s: float = 0.0
    tokens_per_s: float = 0.0  # of answers, as forwarded to regions
    errors_per_s: float = 0.0  # answered with a 5xx of ours or of a region
    regions: dict[str, float] = {}  # region -> tokens_per_s of it


class RegionSeen(Struct, frozen=True):
    """One edge worker's view of one region."""

    reachable: bool
    rtt_ms: float | None = None
    requests_per_s: float = 0.0
    errors_per_s: float = 0.0
    first_token_ms: float | None = None  # mean, lately


class EdgeReport(Struct, frozen=True):
    """From one edge worker. `node`: "edge/tokyo" or "edge/tokyo/0"; `edge`: "tokyo"."""

    node: str
    edge: str
    at_s: float
    demand: dict[str, ClassLoad] = {}  # demand class -> load
    regions: dict[str, RegionSeen] = {}
    tenants: dict[str, float] = {}  # tenant with a limit -> requests per second that asked
    # When its load report and its heartbeat came, which may go to different replicas; 0: none did.
    load_at_s: float = 0.0
    seen_at_s: float = 0.0


class CoreReport(Struct, frozen=True):
    """From one core, in ORCA's terms. `utilisation`: 1 is full; more when requests wait."""

    node: str
    region: str
    at_s: float
    utilisation: float
    tokens_per_s: float = 0.0
    running: float = 0.0
    waiting: float = 0.0
    healthy: bool = True
    draining: bool = False


class NodeState(Struct, frozen=True):
    """How one node stands with discovery."""

    node: str
    connected: bool
    since_s: float
    acked_revision: int
    acked_directive: int = 0  # number of the last directive that it acknowledged
    nack_revision: int = 0
    nack_reason: str = ""
    stale: bool = False  # told by a replica that does not reach the store
    staged: bool = False  # what it acknowledged is the snapshot of before the rollout


class Member(Struct, frozen=True):
    """A node that is registered and alive, by its lease or by Consul's checks."""

    node: str  # "edge/tokyo", "edge/tokyo/0", "core/singapore", "core/singapore.2"
    role: str  # edge | core
    name: str  # of the EdgeSite or Region
    incarnation: str  # another one after each start of the process
    addresses: tuple[str, ...] = ()
    version: str = ""
    healthy: bool = True  # and takes new work: false while it drains
    since_s: float = 0.0
    draining: bool = False


class Observed(Struct, frozen=True):
    """Everything one replica, or all of them, can say."""

    at_s: float
    edges: dict[str, EdgeReport] = {}
    cores: dict[str, CoreReport] = {}
    nodes: dict[str, NodeState] = {}


def union(parts: Iterable[Observed], at_s: float) -> Observed:
    """All that `parts` say; of two reports from a node, the newer one. What an edge counts and
    what it sees are two: they may have gone to different replicas."""
    edges: dict[str, EdgeReport] = {}
    cores: dict[str, CoreReport] = {}
    nodes: dict[str, NodeState] = {}
    for part in parts:
        for node, edge in part.edges.items():
            other = edges.get(node)
            edges[node] = edge if other is None else _joined(other, edge)
        for node, core in part.cores.items():
            if node not in cores or cores[node].at_s < core.at_s:
                cores[node] = core
        for node, state in part.nodes.items():
            held = nodes.get(node)
            if held is None or (held.connected, held.since_s) < (state.connected, state.since_s):
                nodes[node] = state
    return Observed(at_s, edges, cores, nodes)


def _joined(one: EdgeReport, other: EdgeReport) -> EdgeReport:
    """What a node counted by the newer load report, what it sees by the newer heartbeat."""
    both = (one, other)
    load = max(both, key=lambda report: (report.load_at_s, report.at_s))
    seen = max(both, key=lambda report: (report.seen_at_s, report.at_s))
    if load is seen:
        return load
    regions = dict(load.regions)
    for region, view in seen.regions.items():
        counted = regions.get(region, RegionSeen(view.reachable))
        regions[region] = msgspec.structs.replace(
            counted, reachable=view.reachable, rtt_ms=view.rtt_ms
        )
    return msgspec.structs.replace(
        load,
        at_s=max(one.at_s, other.at_s),
        regions=regions,
        seen_at_s=seen.seen_at_s,
    )
