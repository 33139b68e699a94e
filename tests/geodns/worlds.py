"""Snapshots, tables and files for the tests of geo-DNS."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from topology.geo import PrefixTable
from topology.resources import Resource, parse
from topology.snapshot import Snapshot

ZONE = "tradewind.test"
CITIES: dict[str, tuple[float, float]] = {
    "tokyo": (35.68, 139.69),
    "mumbai": (19.08, 72.88),
    "riyadh": (24.71, 46.68),
    "london": (51.51, -0.13),
    "sao-paulo": (-23.55, -46.63),
    "sydney": (-33.87, 151.21),
}
ADDRESSES: dict[str, list[str]] = {
    "tokyo": ["192.0.2.1", "2001:db8::1"],
    "mumbai": ["192.0.2.2", "2001:db8::2"],
    "riyadh": ["192.0.2.3"],
    "london": ["192.0.2.4", "2001:db8::4"],
    "sao-paulo": ["192.0.2.5"],
    "sydney": ["192.0.2.6", "2001:db8::6"],
}
ALL = frozenset(CITIES)

PLACES: list[dict[str, Any]] = [
    {"prefix": "198.18.1.0/24", "city": "Tokyo", "latitude": 35.68, "longitude": 139.69},
    {"prefix": "198.18.4.0/24", "city": "London", "latitude": 51.51, "longitude": -0.13},
    {"prefix": "203.0.0.0/16", "city": "Sydney", "latitude": -33.87, "longitude": 151.21},
    {"prefix": "203.0.113.0/24", "city": "Mumbai", "latitude": 19.08, "longitude": 72.88},
    {"prefix": "127.0.0.0/8", "city": "Riyadh", "latitude": 24.71, "longitude": 46.68},
    {"prefix": "2001:db8:100::/40", "city": "London", "latitude": 51.51, "longitude": -0.13},
]


def table() -> PrefixTable:
    return PrefixTable.parse(PLACES, "places")


def edge(name: str, addresses: Sequence[str] | None = None, port: int = 8080) -> Resource:
    latitude, longitude = CITIES[name]
    spec = {
        "city": name.title(),
        "latitude": latitude,
        "longitude": longitude,
        "jurisdiction": "XX",
        "addresses": list(addresses or ADDRESSES[name]),
        "port": port,
    }
    return parse({"kind": "EdgeSite", "name": name, "spec": spec}, name)


def zone(name: str = ZONE, **changes: Any) -> Resource:
    spec: dict[str, Any] = {
        "contact": f"host.master@{name}",
        "nameservers": [
            {"name": f"ns1.{name}", "addresses": ["192.0.2.53", "2001:db8::53"]},
            {"name": "ns2.dns.example"},
        ],
        "names": [
            {"name": "api", "edges": ["*"], "answers": 2},
            {"name": "one", "edges": ["london"]},
            {"name": "deep.er", "edges": ["tokyo", "sydney"], "answers": 1},
        ],
        "ttl_s": 30,
        "negative_ttl_s": 15,
    } | changes
    return parse({"kind": "Zone", "name": name, "spec": spec}, name)


def snapshot(*extra: Resource, revision: int = 7, edges: Sequence[str] = tuple(CITIES)) -> Snapshot:
    held = {r.key: r for r in [*(edge(name) for name in edges), zone(), *extra]}
    return Snapshot.build(revision, held.values())


# --- A small MMDB writer, so that no test needs somebody's database ---------------------------
# Layout: https://maxmind.github.io/MaxMind-DB/ (version 2.0). 32-bit records, IPv6 tree.


def write_mmdb(rows: Mapping[str, tuple[str, float, float]]) -> bytes:
    """An MMDB of prefix -> (city, latitude, longitude). IPv4 lies under ::/96."""
    nodes: list[list[Any]] = [[None, None]]
    data = bytearray()
    for prefix, (city, latitude, longitude) in sorted(
        rows.items(), key=lambda row: ipaddress.ip_network(row[0]).prefixlen
    ):
        network = ipaddress.ip_network(prefix)
        offset = len(data)
        data += _mmdb(
            {
                "city": {"names": {"en": city}},
                "location": {"latitude": latitude, "longitude": longitude},
            }
        )
        value = int(network.network_address)
        length = network.prefixlen + (96 if network.version == 4 else 0)
        _insert(nodes, value, length, ("data", offset))
    tree = bytearray()
    for node in nodes:
        for side in node:
            if side is None:
                tree += struct.pack("!I", len(nodes))
            elif isinstance(side, tuple):
                tree += struct.pack("!I", len(nodes) + 16 + side[1])
            else:
                tree += struct.pack("!I", side)
    metadata = {
        "binary_format_major_version": _U16(2),
        "binary_format_minor_version": _U16(0),
        "build_epoch": _U64(1),
        "database_type": "GeoLite2-City",
        "description": {"en": "test"},
        "ip_version": _U16(6),
        "languages": ["en"],
        "node_count": _U32(len(nodes)),
        "record_size": _U16(32),
    }
    return bytes(tree) + b"\0" * 16 + bytes(data) + b"\xab\xcd\xefMaxMind.com" + _mmdb(metadata)


class _U16(int):
    pass


class _U32(int):
    pass


class _U64(int):
    pass


_MMDB_KINDS: dict[type[int], int] = {_U16: 5, _U32: 6, _U64: 9}


def _insert(nodes: list[list[Any]], value: int, length: int, leaf: tuple[str, int]) -> None:
    at = 0
    for depth in range(length):
        bit = value >> (127 - depth) & 1
        if depth == length - 1:
            nodes[at][bit] = leaf
            return
        child = nodes[at][bit]
        if not isinstance(child, int):  # nothing yet, or a shorter prefix that is split here
            nodes.append([child, child])
            child = nodes[at][bit] = len(nodes) - 1
        at = child


def _mmdb(value: Any) -> bytes:
    if isinstance(value, dict):
        body = b"".join(_mmdb(k) + _mmdb(v) for k, v in value.items())
        return _mmdb_head(7, len(value)) + body
    if isinstance(value, list):
        return _mmdb_head(11, len(value)) + b"".join(map(_mmdb, value))
    if isinstance(value, str):
        raw = value.encode()
        return _mmdb_head(2, len(raw)) + raw
    if isinstance(value, float):
        return _mmdb_head(3, 8) + struct.pack("!d", value)
    raw = int(value).to_bytes((value.bit_length() + 7) // 8, "big")
    return _mmdb_head(_MMDB_KINDS[type(value)], len(raw)) + raw


def _mmdb_head(kind: int, size: int) -> bytes:
    extended = kind > 7
    first = (0 if extended else kind << 5) | min(size, 29)
    head = bytes([first])
    if extended:
        head += bytes([kind - 7])
    if size >= 29:
        head += bytes([size - 29])
    return head
