"""Zones of a snapshot, compiled to what a query looks up. Pure.

A zone holds its SOA and NS, the addresses of its own name servers, and its geo-answered names.
A name that is only a step towards others (an empty non-terminal) exists without data, and so
do the steps towards a child zone that is served here too (RFC 8020).
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Mapping

from msgspec import Struct

from control_plane.geodns import packet
from control_plane.geodns.errors import InvalidZone
from topology.resources import ZoneSpec
from topology.snapshot import Snapshot

APEX = "@"
RFC8482 = b"\x07RFC8482\x00"  # the HINFO that answers ANY (RFC 8482 section 4.2)

_SOA_NUMBERS = struct.Struct("!IIIII")


class Node(Struct, frozen=True):
    """A name that has data. `geo`: the entry's name in the resource, if edges answer it."""

    geo: str | None = None
    apex: bool = False
    addresses: tuple[tuple[int, bytes], ...] = ()  # (A or AAAA, data), of a name server


class Zone(Struct, frozen=True):
    """One zone. Names are in wire form, lower case and absolute."""

    name: str  # of the resource
    origin: bytes
    ttl_s: int
    negative_ttl_s: int
    soa: bytes  # the record's data
    nameservers: tuple[bytes, ...]
    glue: bytes  # whole records
    glue_count: int
    nodes: Mapping[bytes, Node]
    steps: frozenset[bytes]  # empty non-terminals


def compile_zones(snapshot: Snapshot) -> dict[bytes, Zone]:
    """Zones by origin; raises `InvalidZone` for what the resource's own checks let through."""
    origins = {name: _wire(name, name) for name in snapshot.zones}
    serial = max(1, snapshot.revision & 0xFFFFFFFF)
    return {
        origins[name]: _compile(name, spec, serial, origins.values())
        for name, spec in snapshot.zones.items()
    }


def address_data(address: str) -> tuple[int, bytes]:
    """A or AAAA, and the record's data."""
    ip = ipaddress.ip_address(address)
    return (packet.A if ip.version == 4 else packet.AAAA), ip.packed


def suffixes(name: bytes) -> Iterable[bytes]:
    """`name`, then its parent, and so on to the root."""
    while name:
        yield name
        name = name[1 + name[0] :]


def _compile(name: str, spec: ZoneSpec, serial: int, origins: Iterable[bytes]) -> Zone:
    origin = _wire(name, name)
    nodes: dict[bytes, Node] = {origin: Node(apex=True)}
    glue: list[bytes] = []
    for server in spec.nameservers:
        owner = _wire(server.name, name)
        if owner.endswith(origin) and origin in suffixes(owner):
            addresses = tuple(address_data(address) for address in server.addresses)
            glue += [packet.record(owner, kind, spec.ttl_s, data) for kind, data in addresses]
            held = nodes.get(owner, Node())
            nodes[owner] = Node(held.geo, held.apex, held.addresses + addresses)
    for entry in spec.names:
        owner = _owner(entry.name, name)
        held = nodes.get(owner, Node())
        nodes[owner] = Node(entry.name, held.apex, held.addresses)
    below = [other for other in origins if other != origin and origin in suffixes(other)]
    return Zone(
        name=name,
        origin=origin,
        ttl_s=spec.ttl_s,
        negative_ttl_s=spec.negative_ttl_s,
        soa=_soa(name, spec, serial),
        nameservers=tuple(_wire(server.name, name) for server in spec.nameservers),
        glue=b"".join(glue),
        glue_count=len(glue),
        nodes=nodes,
        steps=frozenset(_steps([*nodes, *below], origin) - nodes.keys()),
    )


def _steps(names: Iterable[bytes], origin: bytes) -> set[bytes]:
    found = set()
    for name in names:
        for parent in suffixes(name):
            if len(parent) < len(origin):
                break
            found.add(parent)
    return found


def _owner(relative: str, zone: str) -> bytes:
    name = relative.rstrip(".").lower()
    if name in (APEX, zone):
        return _wire(zone, zone)
    return _wire(f"{name.removesuffix('.' + zone)}.{zone}", zone)


def _soa(name: str, spec: ZoneSpec, serial: int) -> bytes:
    try:
        mailbox = packet.mailbox(spec.contact)
    except ValueError as error:
        raise InvalidZone(
            f"Zone/{name}: contact {spec.contact!r} has no DNS form: {error}"
        ) from error
    numbers = (serial, spec.refresh_s, spec.retry_s, spec.expire_s, spec.negative_ttl_s)
    try:
        packed = _SOA_NUMBERS.pack(*numbers)
    except struct.error as error:
        raise InvalidZone(
            f"Zone/{name}: refresh_s, retry_s and expire_s lie between 0 and {2**32 - 1}"
        ) from error
    return _wire(spec.nameservers[0].name, name) + mailbox + packed


def _wire(text: str, zone: str) -> bytes:
    try:
        return packet.wire_name(text)
    except ValueError as error:
        raise InvalidZone(f"Zone/{zone}: name {text!r} has no DNS form: {error}") from error
