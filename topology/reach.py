"""How one edge reaches one region for one tenant: straight, or through a relay. Pure.

The first way that is up, in the edge's own order (`topology.paths`), and whose relay lies where
the tenant's data may go. Requests of the batch tier take the cheapest, by what links declare.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from msgspec import Struct

from topology.paths import PathView, name_of
from topology.resources import Key, LinkSpec, TenantSpec
from topology.snapshot import Snapshot

# A region that nobody measured and no link describes still has to be sorted somewhere.
UNKNOWN_RTT_MS = 1_000.0


class RegionView(Struct, frozen=True):
    """What one edge sees of one region now. `rtt_ms` None: not measured yet.

    `paths`: its ways there, in the order of preference; none: straight, by the other two fields.
    `queue_ms`: how long the region said that requests wait there. `part`: how much of the requests
    that would be given to it first it is given, while it returns from failing; 0: none, until it
    is seen what becomes of one. `cores`: how many of them are reached straight.
    """

    reachable: bool
    rtt_ms: float | None = None
    paths: tuple[PathView, ...] = ()
    queue_ms: float = 0.0
    part: float = 1.0
    cores: int = 1


Views: TypeAlias = Mapping[str, RegionView]


class Relays(Struct, frozen=True):
    """Which relays the requests of one tenant may take."""

    allowed: frozenset[str] | None  # none: all
    residency: str  # in words
    emptied: frozenset[str]  # drained altogether: they relay only where nobody else can
    cheapest: bool  # what a way costs goes before how long it takes

    @classmethod
    def for_tenant(cls, snapshot: Snapshot, tenant: TenantSpec, emptied: frozenset[str]) -> Relays:
        lies = tenant.residency
        allowed = None
        if lies is not None:
            allowed = frozenset(n for n, r in snapshot.regions.items() if r.jurisdiction in lies)
        return cls(allowed, ", ".join(lies or ()), emptied, tenant.tier == "batch")

    def allow(self, relay: str) -> bool:
        return not relay or self.allowed is None or relay in self.allowed


class Reach(Struct, frozen=True):
    """The way that is taken, and the others in the order to take them."""

    rtt_ms: float
    cost_ms: float  # what the region is compared by with others: its queue is in it
    why: str
    unreachable: str = ""  # why there is no way; "": there is
    relay: str = ""
    others: tuple[str, ...] = ()
    doubted: bool = False  # `unreachable` because it does not serve: better than nothing


def reach(
    snapshot: Snapshot, edge: str, region: str, view: RegionView | None, relays: Relays
) -> Reach:
    """How requests that may take `relays` go from `edge`, which sees `view`, to `region`."""
    if view is None or not view.paths:
        return _straight(snapshot, edge, region, view)
    up = [path for path in view.paths if path.up]
    left = [path for path in up if relays.allow(path.relay)]
    serves = view.reachable and view.part > 0.0
    unreachable = "" if left and serves else _no_way(snapshot, view, up, left, relays)
    if not left:
        return Reach(UNKNOWN_RTT_MS, UNKNOWN_RTT_MS, "", unreachable)
    if relays.cheapest and len(left) > 1:
        left.sort(key=lambda path: _cost_per_gib(snapshot, edge, region, path.relay))
    if relays.emptied and len(left) > 1:
        left.sort(key=lambda path: path.relay in relays.emptied)
    first = left[0]
    rtt_ms, why = _distance(snapshot, edge, region, first.relay, first.rtt_ms)
    if first.relay:
        why = f"{why} {name_of(first.relay)}"
    if first.relay != up[0].relay:
        why = f"{why}; {_passed_over(up[0].relay, relays)}"
    if view.queue_ms >= 1.0:
        why = f"{why}; requests wait {view.queue_ms:.0f} ms there"
    return Reach(
        rtt_ms=rtt_ms,
        cost_ms=rtt_ms + first.extra_ms + view.queue_ms,
        why=why,
        unreachable=unreachable,
        relay=first.relay,
        others=tuple([path.relay for path in left[1:]]),
        doubted=bool(unreachable),
    )


def _straight(snapshot: Snapshot, edge: str, region: str, view: RegionView | None) -> Reach:
    """Where nothing is known of ways."""
    measured_ms = view.rtt_ms if view is not None else None
    rtt_ms, why = _distance(snapshot, edge, region, "", measured_ms)
    lost = "" if view is None or view.reachable else "this edge has no live path to it"
    return Reach(rtt_ms, rtt_ms + (view.queue_ms if view is not None else 0.0), why, lost)


def _distance(
    snapshot: Snapshot, edge: str, region: str, relay: str, measured_ms: float | None
) -> tuple[float, str]:
    """The round-trip time of a way in ms, and how it is known."""
    if measured_ms is not None:
        return measured_ms, f"measured {measured_ms:.0f} ms away"
    links = _links(snapshot, edge, region, relay)
    known_ms = [link.rtt_ms for link in links if link is not None]
    if len(known_ms) < len(links):
        return UNKNOWN_RTT_MS, "no link declares its distance"
    return sum(known_ms), f"expected {sum(known_ms):.0f} ms away"


def _passed_over(relay: str, relays: Relays) -> str:
    """Why the way that the edge prefers is not taken."""
    better = f"{name_of(relay)} is better, and"
    if not relays.allow(relay):
        return f"{better} outside the tenant's residency"
    if relay in relays.emptied:
        return f"{better} {relay} is drained"
    return f"{better} costs more"


def _no_way(
    snapshot: Snapshot,
    view: RegionView,
    up: list[PathView],
    left: list[PathView],
    relays: Relays,
) -> str:
    if left and view.reachable:
        return "it failed lately, and this edge is trying with one request whether it serves again"
    if left:
        return "this edge has a path to it, and found that it does not serve"
    if not up:
        return "this edge has no live path to it, straight or through a relay"
    through = ", ".join(
        f"{path.relay}, which lies in {snapshot.regions[path.relay].jurisdiction}"
        if path.relay in snapshot.regions
        else path.relay
        for path in up
    )
    return (
        f"this edge reaches it only through a relay outside the tenant's residency ({through}); "
        f"the tenant's data stays in {relays.residency}"
    )


def _cost_per_gib(snapshot: Snapshot, edge: str, region: str, relay: str) -> float:
    """What traffic over a way costs, as its links declare."""
    links = _links(snapshot, edge, region, relay)
    return sum(link.cost_per_gib for link in links if link is not None)


def _links(snapshot: Snapshot, edge: str, region: str, relay: str) -> list[LinkSpec | None]:
    site, target = Key("EdgeSite", edge), Key("Region", region)
    if not relay:
        return [snapshot.link(site, target)]
    through = Key("Region", relay)
    return [snapshot.link(site, through), snapshot.link(through, target)]
