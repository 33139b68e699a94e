"""Which edges a client is sent to. Pure: DNS answers with it, and `explain` shows it.

The order of preference for one name:

1. Healthy edges before unhealthy ones.
2. Among them, nearest first by great-circle distance, where the client's place is known; equal
   distances by name.
3. Where it is not known, a *stable spread*: each client network falls into one of
   `SPREAD_BUCKETS` buckets (`spread_of`), and each bucket has its own order of the edges, by
   rendezvous hashing. So unknown clients are shared out evenly, every replica gives the same
   answer, and an edge that leaves moves only the clients that it had.

The first `answers` healthy edges are answered. When no edge of the name is healthy, health is
ignored (**fail-open**): an answer that may work beats one that cannot, and a fault in the
health checks must never take a name off the Internet.

Edges are chosen before the address family: where the nearest edges have no IPv6 address, AAAA
is answered with no data rather than with an edge across the world, since a dual-stack client
would prefer the far one (RFC 8305 tries IPv6 first).
"""

from __future__ import annotations

import hashlib
import ipaddress
import zlib
from collections.abc import Collection

from msgspec import Struct

from topology.errors import UnknownName
from topology.geo import Address, Coordinates, Place, distance_km, unmapped
from topology.resources import ANY, EdgeSiteSpec, ZoneName, ZoneSpec
from topology.snapshot import Snapshot

SPREAD_BUCKETS = 256
_SPREAD_PREFIX = {4: 24, 6: 48}  # networks smaller than these stay together


class Candidate(Struct, frozen=True):
    """An edge that a name may answer with. `distance_km` is None where the place is unknown."""

    edge: str
    healthy: bool
    distance_km: float | None


class Choice(Struct, frozen=True):
    """What a client gets, and why.

    `scope` is the prefix length around the client within which the choice is the same (the ECS
    scope): 0 when no client would get another one; None when the place is unknown, so that it
    holds for the network asked about and no further.
    """

    candidates: tuple[Candidate, ...]  # every edge of the name, most preferred first
    edges: tuple[str, ...]  # those that are answered, in order
    scope: int | None
    fail_open: bool  # no edge is healthy, so health was ignored
    place: Place | None
    reason: str


def choose_edges(
    snapshot: Snapshot,
    zone: str,
    name: str,
    place: Place | None,
    healthy: Collection[str],
    spread: int = 0,
) -> Choice:
    """The edges for a client at `place`, in order.

    `name` is relative to `zone` as in the resource (`@` is the zone itself), or absolute.
    `healthy` holds names of edges. `spread` is `spread_of` the client, used where `place` is
    None. Raises `UnknownName`.
    """
    entry = _entry(snapshot, zone, name)
    edges = snapshot.edges
    names = list(edges) if ANY in entry.edges else list(dict.fromkeys(entry.edges))
    candidates = _ordered({edge: edges[edge] for edge in names}, place, healthy, spread)
    serving = [candidate for candidate in candidates if candidate.healthy]
    fail_open = not serving and bool(candidates)
    if fail_open:
        serving = list(candidates)
    chosen = tuple(candidate.edge for candidate in serving[: entry.answers])
    if len(candidates) <= 1:
        scope: int | None = 0
    else:
        scope = None if place is None else place.prefix_length
    return Choice(candidates, chosen, scope, fail_open, place, _reason(candidates, place))


def spread_of(ip: Address) -> int:
    """The bucket, below `SPREAD_BUCKETS`, of a client whose place is unknown."""
    ip = unmapped(ip)
    network = ipaddress.ip_network((ip, _SPREAD_PREFIX[ip.version]), strict=False)
    return zlib.crc32(network.network_address.packed) % SPREAD_BUCKETS


def _entry(snapshot: Snapshot, zone: str, name: str) -> ZoneName:
    spec: ZoneSpec | None = snapshot.zones.get(zone)
    if spec is None:
        have = ", ".join(sorted(snapshot.zones)) or "none"
        raise UnknownName(f"no zone {zone!r}", hint=f"zones: {have}")
    wanted = _relative(name, zone)
    for entry in spec.names:
        if _relative(entry.name, zone) == wanted:
            return entry
    have = ", ".join(entry.name for entry in spec.names)
    raise UnknownName(f"zone {zone} has no name {name!r}", hint=f"names: {have}")


def _relative(name: str, zone: str) -> str:
    name = name.rstrip(".").lower()
    zone = zone.rstrip(".").lower()
    return "@" if name in ("", zone) else name.removesuffix(f".{zone}")


def _ordered(
    edges: dict[str, EdgeSiteSpec], place: Place | None, healthy: Collection[str], spread: int
) -> tuple[Candidate, ...]:
    if place is None:
        unknown = [Candidate(name, name in healthy, None) for name in edges]
        return tuple(
            sorted(unknown, key=lambda c: (not c.healthy, _rendezvous(spread, c.edge), c.edge))
        )
    here = place.coordinates
    known = [
        (distance_km(here, Coordinates(spec.latitude, spec.longitude)), name)
        for name, spec in edges.items()
    ]
    known.sort(key=lambda item: (item[1] not in healthy, item[0], item[1]))
    return tuple(Candidate(name, name in healthy, distance) for distance, name in known)


def _rendezvous(spread: int, edge: str) -> int:
    # Not crc32: it is linear, so that all buckets would order the edges in related ways.
    digest = hashlib.blake2b(edge.encode(), key=spread.to_bytes(4, "big"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _reason(candidates: tuple[Candidate, ...], place: Place | None) -> str:
    if not candidates:
        return "no edge is defined"
    how = f"nearest to {place.city}" if place else "place unknown: stable spread"
    healthy = sum(candidate.healthy for candidate in candidates)
    if not healthy:
        return f"{how}; no edge is healthy, so health is ignored"
    return f"{how}; {healthy} of {len(candidates)} edges healthy"
