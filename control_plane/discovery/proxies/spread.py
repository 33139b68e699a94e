"""How a proxy spreads one demand class over regions: as an edge in its place would. Pure.

An edge draws a number in [0, 1) for each request; a region drained by 30% takes none that drew
less than 0.3 (`topology.routing.decide`). A proxy cannot draw, but it can weigh, so the weights
here are the shares that those draws come to. Regions with no share that are in health stand by.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from msgspec import Struct

from control_plane.directives.state import State, directive_for
from control_plane.discovery.proxies.node import Profile
from topology.demand import DemandClass
from topology.directive import Directive
from topology.geo import Coordinates, distance_km
from topology.resources import Key
from topology.routing import standing
from topology.snapshot import Snapshot

# Light in fibre, there and back, over a cable half as long again as the great circle.
_KM_PER_RTT_MS = 67.0


class Spread(Struct, frozen=True):
    """`shares` sum to 1 less `refused`; `standby` is who comes next, nearest first."""

    shares: dict[str, float] = {}
    standby: tuple[str, ...] = ()
    refused: float = 0.0


class World(Struct, frozen=True):
    """What is translated: the configuration, what the director decided, and when (Unix time)."""

    snapshot: Snapshot
    state: State
    now_s: float


def spread_for(world: World, profile: Profile, demand: DemandClass) -> Spread:
    """Where requests of `demand` go from a proxy like `profile`."""
    regions = [r for r in demand.regions if _has_endpoints(world.snapshot, r)]
    directive = directive_for(world.state, f"edge/{profile.place}")
    away = _without_the_down(
        {region: _away(world, region, directive) for region in regions}, directive
    )
    directed = directive.shares.get(str(demand), {})
    if demand.ordered:
        order, weights = regions, {}
    elif placed(world.snapshot, profile.place):
        order = nearest_first(world.snapshot, profile.place, regions)
        weights = {r: w for r, w in directed.items() if r in away and w > 0}
    else:
        order, weights = regions, dict.fromkeys(regions, 1.0)
    found = shares(order, weights, away)
    shed = directive.shed.get(str(demand), 0.0)
    if shed <= 0 or not found.shares:
        return found
    kept = 1.0 - min(shed, 1.0)
    return Spread(
        {region: share * kept for region, share in found.shares.items() if share * kept > 0},
        found.standby,
        1.0 - (1.0 - found.refused) * kept,
    )


def shares(order: Sequence[str], weights: Mapping[str, float], away: Mapping[str, float]) -> Spread:
    """`away`: region -> percent of its requests that go elsewhere, for all of `order`.

    For each draw, those regions that still take it share it by their weights; where none of
    them has one, the first of `order` takes it.
    """
    levels = sorted({0.0, 100.0, *(away[r] for r in order)})
    out: dict[str, float] = {}
    refused = 0.0
    for low, high in itertools.pairwise(levels):
        part = (high - low) / 100.0
        takers = [r for r in order if away[r] <= low]
        weight = sum(weights.get(r, 0.0) for r in takers)
        if not takers:
            refused += part
        elif weight > 0:
            for region in takers:
                out[region] = out.get(region, 0.0) + part * (weights.get(region, 0.0) / weight)
        else:
            out[takers[0]] = out.get(takers[0], 0.0) + part
    taking = {region: share for region, share in out.items() if share > 0}
    standby = tuple(r for r in order if r not in taking and away[r] < 100.0)
    return Spread(taking, standby, refused)


def placed(snapshot: Snapshot, place: str) -> bool:
    """Whether the place is one that the configuration knows."""
    return place in snapshot.edges or place in snapshot.regions


def nearest_first(snapshot: Snapshot, place: str, regions: Sequence[str]) -> list[str]:
    """By declared round-trip time; where no link declares one, by distance."""
    return sorted(regions, key=lambda region: (_rtt_ms(snapshot, place, region), region))


def _rtt_ms(snapshot: Snapshot, place: str, region: str) -> float:
    if place == region:
        return 0.0
    kind = "EdgeSite" if place in snapshot.edges else "Region"
    link = snapshot.link(Key(kind, place), Key("Region", region))
    if link is not None:
        return link.rtt_ms
    here = snapshot.edges[place] if kind == "EdgeSite" else snapshot.regions[place]
    there = snapshot.regions[region]
    km = distance_km(
        Coordinates(here.latitude, here.longitude), Coordinates(there.latitude, there.longitude)
    )
    return km / _KM_PER_RTT_MS


def _away(world: World, region: str, directive: Directive) -> float:
    held = standing(world.snapshot, region, world.now_s, directive)
    return held.percent if held is not None else 0.0


def _without_the_down(away: dict[str, float], directive: Directive) -> dict[str, float]:
    """Regions that are down take nothing, unless that would leave nobody at all: a verdict may be
    old, since the director may be gone, and trying costs no more than refusing."""
    alive = [region for region, percent in away.items() if percent < 100.0]
    if all(region in directive.down for region in alive):
        return away
    return {r: 100.0 if r in directive.down else percent for r, percent in away.items()}


def _has_endpoints(snapshot: Snapshot, region: str) -> bool:
    spec = snapshot.regions.get(region)
    return spec is not None and bool(spec.endpoints)
