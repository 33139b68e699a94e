"""The maps of the failover benchmarks: regions, edges, distances, and who may be served where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lab import world as lab
from lab.world import EdgePlace, RegionSite
from topology.latency import published_rtt_ms

ANYWHERE = "anywhere"  # the tenant that every region may serve


@dataclass(frozen=True)
class Geography:
    """Where things are, how far apart, and which tenant may be served where.

    `rtt_ms`: (edge or region, region) -> round trip; `routes`: tenant -> regions; `asks`: edge ->
    the tenant that asks there.
    """

    name: str
    regions: tuple[RegionSite, ...]
    edges: tuple[EdgePlace, ...]
    rtt_ms: Mapping[tuple[str, str], float]
    routes: Mapping[str, tuple[str, ...]]
    asks: Mapping[str, str]
    policy: Mapping[str, Any] = field(default_factory=dict)

    def rtt_of(self, edge: str, region: str, path: str) -> float:
        """Of a path as the edge names it: `direct`, or `via <region>`."""
        relay = path.removeprefix("via ")
        if relay == path:
            return self.rtt_ms[edge, region]
        return self.rtt_ms[edge, relay] + self.rtt_ms[relay, region]

    def nearest(self, edge: str) -> str:
        """The region that the edge's tenant is sent to when all is well and paths are straight."""
        return min(self.routes[self.asks[edge]], key=lambda r: self.rtt_ms[edge, r])


def published(edges: Sequence[str] = ("tokyo", "mumbai", "london")) -> Geography:
    """The lab's regions and some of its edges, at published round-trip times of a cloud."""
    places = tuple(edge for edge in lab.EDGES if edge.name in edges)
    names = tuple(region.name for region in lab.REGIONS)
    rtt = {}
    everywhere: tuple[RegionSite | EdgePlace, ...] = (*places, *lab.REGIONS)
    for place in everywhere:
        for region in lab.REGIONS:
            if place.city is not region.city:
                found = published_rtt_ms(place.city.name, region.city.name)
                assert found is not None
                rtt[place.name, region.name] = found
    asks = {place.name: ANYWHERE for place in places}
    return Geography("published", lab.REGIONS, places, rtt, {ANYWHERE: names}, asks)


ISTANBUL = lab.City("Istanbul", 41.01, 28.98, "198.18.13.0/24")
# Round trips as the public internet has them where a straight way is a bad one; the legs of the
# detours add up to what is known of them: London-Dubai through Frankfurt 149 instead of 270,
# Tokyo-Dubai through Singapore 157 instead of 247, Istanbul-Singapore through Dubai 203 instead
# of 270.
INTERNET: dict[tuple[str, str], float] = {
    ("london", "frankfurt"): 18,
    ("london", "singapore"): 190,
    ("london", "dubai"): 270,
    ("tokyo", "singapore"): 71,
    ("tokyo", "frankfurt"): 227,
    ("tokyo", "dubai"): 247,
    ("istanbul", "dubai"): 117,
    ("istanbul", "frankfurt"): 60,
    ("istanbul", "singapore"): 270,
    ("frankfurt", "dubai"): 131,
    ("dubai", "frankfurt"): 131,
    ("singapore", "dubai"): 86,
    ("dubai", "singapore"): 86,
    ("frankfurt", "singapore"): 180,
    ("singapore", "frankfurt"): 180,
}


def internet(edges: Sequence[str] = ("tokyo", "london", "istanbul")) -> Geography:
    """Edges whose straight way to the one region that may serve them is a bad one."""
    istanbul = EdgePlace(ISTANBUL, "TR", "127.10.7.1")
    return Geography(
        "internet",
        lab.REGIONS,
        tuple(edge for edge in (*lab.EDGES, istanbul) if edge.name in edges),
        INTERNET,
        {"to-dubai": ("dubai",), "to-singapore": ("singapore",)},
        {"tokyo": "to-dubai", "london": "to-dubai", "istanbul": "to-singapore"},
    )
