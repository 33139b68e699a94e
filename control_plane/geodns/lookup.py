"""From a question to what is true about it, at one moment. Pure, and knows no packet.

`View` is that moment: one snapshot, one set of healthy edges. `View.look_up` gives the sections
of an answer, or a `GeoName` where they depend on who asks; `View.tailor` settles those.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from msgspec import Struct

from control_plane.geodns import packet as wire
from control_plane.geodns.origins import Origin
from control_plane.geodns.packet import Query
from control_plane.geodns.policy import choose_edges
from control_plane.geodns.zones import RFC8482, Node, Zone, address_data, compile_zones
from topology.snapshot import Snapshot

_QUESTION: Final = b"\xc0\x0c"  # a pointer to the question's name
_REFUSED_TYPES: Final = frozenset(range(249, 255))  # TKEY to MAILA, with AXFR and IXFR


class Sections(NamedTuple):
    """What an answer says, before it is fitted into a packet. Records are in wire form."""

    rcode: int = wire.NOERROR
    authoritative: bool = True
    answers: bytes = b""
    answer_count: int = 0
    authority: bytes = b""
    authority_count: int = 0
    additional: bytes = b""
    additional_count: int = 0


class GeoName(NamedTuple):
    """A name that edges answer; `entry` is its name in the Zone resource."""

    zone: Zone
    entry: str


REFUSED: Final = Sections(wire.REFUSED, authoritative=False)
SERVFAIL: Final = Sections(wire.SERVFAIL, authoritative=False)


class View(Struct, frozen=True):
    """All that answers depend on, but for the client. Build with `View.of`."""

    snapshot: Snapshot
    healthy: frozenset[str]
    zones: Mapping[bytes, Zone]

    @classmethod
    def of(cls, snapshot: Snapshot, healthy: Collection[str]) -> View:
        """Raises `InvalidZone`."""
        return cls(snapshot, frozenset(healthy), compile_zones(snapshot))

    def with_health(self, healthy: Collection[str]) -> View:
        return View(self.snapshot, frozenset(healthy), self.zones)

    def look_up(self, query: Query) -> Sections | GeoName:
        if query.rrclass != wire.CLASS_IN or query.rrtype in _REFUSED_TYPES:
            return REFUSED
        zone = self._zone_of(query.name)
        if zone is None:
            return REFUSED
        node = zone.nodes.get(query.name)
        if node is None:
            rcode = wire.NOERROR if query.name in zone.steps else wire.NXDOMAIN
            return _without_data(zone, query.name, rcode)
        if node.geo is not None and query.rrtype in (wire.A, wire.AAAA):
            return GeoName(zone, node.geo)
        return _fixed(zone, node, query.name, query.rrtype)

    def tailor(self, geo: GeoName, query: Query, origin: Origin) -> tuple[Sections, bool]:
        """The addresses for a client at `origin`; and whether any other would get the same."""
        zone = geo.zone
        choice = choose_edges(
            self.snapshot, zone.name, geo.entry, origin.place, self.healthy, origin.spread
        )
        addresses = [
            data
            for edge in choice.edges
            for kind, data in map(address_data, self.snapshot.edges[edge].addresses)
            if kind == query.rrtype
        ]
        if not addresses:
            return _without_data(zone, query.name), choice.scope == 0
        records = (wire.record(_QUESTION, query.rrtype, zone.ttl_s, data) for data in addresses)
        sections = Sections(answers=b"".join(records), answer_count=len(addresses))
        return sections, choice.scope == 0

    def _zone_of(self, name: bytes) -> Zone | None:
        zones = self.zones
        while name:
            zone = zones.get(name)
            if zone is not None:
                return zone
            name = name[1 + name[0] :]
        return None


def _fixed(zone: Zone, node: Node, name: bytes, rrtype: int) -> Sections:
    """What does not depend on the client."""
    if rrtype == wire.ANY:
        # RFC 8482 section 4.2: no more than the asker needs, which is to stop asking.
        hinfo = wire.record(_QUESTION, wire.HINFO, zone.ttl_s, RFC8482)
        return Sections(answers=hinfo, answer_count=1)
    if node.apex and rrtype == wire.SOA:
        return Sections(
            answers=wire.record(_QUESTION, wire.SOA, zone.ttl_s, zone.soa), answer_count=1
        )
    if node.apex and rrtype == wire.NS:
        records = [wire.record(_QUESTION, wire.NS, zone.ttl_s, ns) for ns in zone.nameservers]
        return Sections(
            answers=b"".join(records),
            answer_count=len(records),
            additional=zone.glue,
            additional_count=zone.glue_count,
        )
    own = [data for kind, data in node.addresses if kind == rrtype]
    if own:
        records = [wire.record(_QUESTION, rrtype, zone.ttl_s, data) for data in own]
        return Sections(answers=b"".join(records), answer_count=len(records))
    return _without_data(zone, name)


def _without_data(zone: Zone, name: bytes, rcode: int = wire.NOERROR) -> Sections:
    """NODATA or NXDOMAIN: SOA in the authority section, its TTL the negative one (RFC 2308)."""
    offset = wire.HEADER_BYTES + len(name) - len(zone.origin)
    owner = (0xC000 | offset).to_bytes(2, "big")
    soa = wire.record(owner, wire.SOA, min(zone.ttl_s, zone.negative_ttl_s), zone.soa)
    return Sections(rcode, authority=soa, authority_count=1)
