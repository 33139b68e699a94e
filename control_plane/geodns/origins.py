"""Where clients are: addresses and client subnets -> origins, through a locator, bounded."""

from __future__ import annotations

import ipaddress

from control_plane.geodns.generations import Generations
from control_plane.geodns.packet import ClientSubnet
from control_plane.geodns.policy import spread_of
from topology.geo import Address, Locator, Place


class Origin:
    """Where a client is, for all that an answer cares: a place, or a bucket of the spread.

    Compared by identity, so that it costs nothing as a cache key; `Origins` keeps one for each
    place and bucket.
    """

    __slots__ = ("place", "spread")

    def __init__(self, place: Place | None, spread: int) -> None:
        self.place = place
        self.spread = spread


class Origins:
    """Remembers what the locator said, for at most `2 * entries` addresses and subnets."""

    def __init__(self, locator: Locator, entries: int) -> None:
        self._locator = locator
        self._limit = entries
        self._interned: dict[tuple[float, float] | int, Origin] = {}
        self.known: Generations[bytes | ClientSubnet, tuple[Origin, int | None]] = Generations(
            entries
        )

    def of_client(self, packed: bytes) -> Origin:
        """Of an address of 4 or 16 bytes."""
        found = self.known.get(packed)
        if found is None:
            found = self._locate(ipaddress.ip_address(packed))
            self.known.put(packed, found)
        return found[0]

    def of_subnet(self, subnet: ClientSubnet) -> tuple[Origin, int]:
        """Of a client subnet, and the scope in which that holds (RFC 7871 section 7.2.1)."""
        found = self.known.get(subnet)
        if found is None:
            ip = ipaddress.ip_address(subnet.packed())
            origin, scope = self._locate(ip)
            if scope is not None and ip.version == 6 and ip.ipv4_mapped is not None:
                scope += 96
            found = (origin, scope)
            self.known.put(subnet, found)
        origin, scope = found
        # In no table: it holds for the network asked about, and nothing is known of others.
        return origin, subnet.source if scope is None else scope

    def _locate(self, ip: Address) -> tuple[Origin, int | None]:
        place = self._locator.locate(ip)
        if place is None:
            spread = spread_of(ip)
            return self._intern(spread, Origin(None, spread)), None
        at = (place.latitude, place.longitude)
        return self._intern(at, Origin(place, 0)), place.prefix_length

    def _intern(self, key: tuple[float, float] | int, origin: Origin) -> Origin:
        if len(self._interned) >= self._limit:
            self._interned = {}  # a second origin for one place costs cache misses, no more
        return self._interned.setdefault(key, origin)
