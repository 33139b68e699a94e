"""Where things are: coordinates, great-circle distance, and address -> place.

Pure. A `Locator` turns an address into a `Place`; `PrefixTable` is the one that needs no file,
and `control_plane/geodns/places.py` holds the one that reads an MMDB.
"""

from __future__ import annotations

import csv
import io
import ipaddress
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated, Any, Protocol, TypeAlias

import msgspec
from msgspec import Meta, Struct

from runtime.validation import InvalidDocument, Problem, check, describe
from topology.fields import Latitude, Longitude

EARTH_RADIUS_KM = 6371.0088  # mean radius, IUGG
MAX_PREFIXES = 500_000  # rows in one table; about 200 bytes each once loaded

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

CSV_HEADER = ("prefix", "city", "latitude", "longitude")


class Coordinates(Struct, frozen=True):
    """A point on the globe, in degrees; north and east are positive."""

    latitude: Latitude
    longitude: Longitude


class Place(Struct, frozen=True):
    """Where an address is.

    `prefix_length` is the length of the largest prefix around the address in which every
    address has this answer; geo-DNS sends it as the ECS scope (RFC 7871 section 7.2.1).
    """

    city: str
    latitude: float
    longitude: float
    prefix_length: int

    @property
    def coordinates(self) -> Coordinates:
        return Coordinates(self.latitude, self.longitude)


class Locator(Protocol):
    """Finds the place of an address. None means that the address is in no table."""

    def locate(self, ip: Address) -> Place | None: ...


def distance_km(a: Coordinates, b: Coordinates) -> float:
    """Great-circle distance in kilometres, by the haversine formula.

    Exact to about 0.5%, since the Earth is not a sphere; ordering edges needs no better.
    """
    lat_a, lat_b = math.radians(a.latitude), math.radians(b.latitude)
    half_lat = (lat_b - lat_a) / 2
    half_lon = math.radians(b.longitude - a.longitude) / 2
    h = math.sin(half_lat) ** 2 + math.cos(lat_a) * math.cos(lat_b) * math.sin(half_lon) ** 2
    return 2 * EARTH_RADIUS_KM * math.asin(min(1.0, math.sqrt(h)))


class PrefixRow(Struct, frozen=True, forbid_unknown_fields=True):
    """One row of a prefix table: everything in `prefix`, but for longer prefixes, is here."""

    prefix: str  # CIDR: 203.0.113.0/24, 2001:db8::/32; host bits must be zero
    city: Annotated[str, Meta(min_length=1, max_length=100)]
    latitude: Latitude
    longitude: Longitude


def network_of(prefix: str) -> Network | None:
    """The network that a CIDR text names, or None where it names none."""
    try:
        return ipaddress.ip_network(prefix)
    except ValueError:
        return None


def unmapped(ip: Address) -> Address:
    """The IPv4 address inside an IPv4-mapped IPv6 one; any other address as it is."""
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


class _Ranges:
    """Prefixes of one family, flattened into disjoint ranges for a binary search.

    Flattening is what makes `prefix_length` right: a /8 with a /24 of another city inside
    answers with the part of the /8 that has no hole, not with 8.
    """

    def __init__(self, bits: int, rows: Sequence[tuple[Network, PrefixRow]]) -> None:
        self._bits = bits
        self._starts: list[int] = [0]
        self._rows: list[PrefixRow | None] = [None]
        ordered = sorted(rows, key=lambda item: (int(item[0].network_address), item[0].prefixlen))
        open_: list[tuple[int, PrefixRow]] = []  # the prefixes that cover this point, widest first
        for network, row in ordered:
            first, last = int(network.network_address), int(network.broadcast_address)
            while open_ and open_[-1][0] < first:
                self._close(open_)
            self._emit(first, row)
            open_.append((last, row))
        while open_:
            self._close(open_)

    def _close(self, open_: list[tuple[int, PrefixRow]]) -> None:
        last, _ = open_.pop()
        if last + 1 < 1 << self._bits:
            self._emit(last + 1, open_[-1][1] if open_ else None)

    def _emit(self, start: int, row: PrefixRow | None) -> None:
        if self._starts[-1] == start:
            self._rows[-1] = row
        else:
            self._starts.append(start)
            self._rows.append(row)

    def find(self, value: int) -> tuple[PrefixRow | None, int]:
        """The row that holds for `value`, and the length of the prefix in which it does."""
        index = bisect_right(self._starts, value) - 1
        # The largest aligned block around `value` excludes both neighbours of its range, so it
        # is one bit longer than the longest prefix that it shares with either.
        outside = []
        if self._starts[index] > 0:
            outside.append(self._starts[index] - 1)
        if index + 1 < len(self._starts):
            outside.append(self._starts[index + 1])
        shared = (self._bits - (value ^ other).bit_length() for other in outside)
        return self._rows[index], max(shared, default=-1) + 1


class PrefixTable:
    """Longest-prefix match of an IPv4 or IPv6 address, in O(log n). Build with `build`.

    An IPv4-mapped IPv6 address is looked up as the IPv4 address that it is.
    """

    __slots__ = ("_size", "_v4", "_v6")

    def __init__(self, rows: Sequence[tuple[Network, PrefixRow]]) -> None:
        self._size = len(rows)
        self._v4 = _Ranges(32, [item for item in rows if item[0].version == 4])
        self._v6 = _Ranges(128, [item for item in rows if item[0].version == 6])

    def __len__(self) -> int:
        return self._size

    def locate(self, ip: Address) -> Place | None:
        row, length = self._find(ip)
        return None if row is None else Place(row.city, row.latitude, row.longitude, length)

    def hole_length(self, ip: Address) -> int:
        """For an address in no prefix: the length of the prefix around it that is in none."""
        return self._find(ip)[1]

    def _find(self, ip: Address) -> tuple[PrefixRow | None, int]:
        ip = unmapped(ip)
        return (self._v4 if ip.version == 4 else self._v6).find(int(ip))

    @classmethod
    def build(cls, rows: Iterable[PrefixRow], source: str = "prefixes") -> PrefixTable:
        """A table, or `InvalidDocument` naming every prefix that is malformed or given twice."""
        found: list[tuple[Network, PrefixRow]] = []
        problems: list[Problem] = []
        seen: dict[Network, int] = {}
        for index, row in enumerate(rows):
            path = f"[{index}].prefix"
            if index >= MAX_PREFIXES:
                problems.append(
                    Problem(source, "", "more", f"at most {MAX_PREFIXES:,} rows: use an MMDB file")
                )
                break
            network = network_of(row.prefix)
            if network is None:
                problems.append(
                    Problem(source, path, describe(row.prefix), "a CIDR prefix, host bits zero")
                )
                continue
            other = seen.setdefault(network, index)
            if other != index:
                problems.append(
                    Problem(source, path, describe(row.prefix), f"once; [{other}] has it too")
                )
            found.append((network, row))
        if problems:
            raise InvalidDocument(problems)
        return cls(found)

    @classmethod
    def parse(cls, raw: object, source: str) -> PrefixTable:
        """From a list of mappings (as YAML gives it) with the fields of `PrefixRow`."""
        problems = check(raw, tuple[PrefixRow, ...], source)
        if problems:
            raise InvalidDocument(problems)
        return cls.build(msgspec.convert(raw, tuple[PrefixRow, ...]), source)

    @classmethod
    def parse_csv(cls, text: str, source: str) -> PrefixTable:
        """From CSV with the header `prefix,city,latitude,longitude`; '#' starts a comment line."""
        lines = [line for line in io.StringIO(text) if line.strip() and not line.startswith("#")]
        reader = csv.reader(lines, strict=True)
        try:
            header = tuple(name.strip() for name in next(reader, []))
            if header != CSV_HEADER:
                found = describe(",".join(header))
                raise InvalidDocument([Problem(source, "", found, ",".join(CSV_HEADER))])
            rows = [_csv_row(cells) for cells in reader]
        except csv.Error as error:
            raise InvalidDocument([Problem(source, "", str(error), "well-formed CSV")]) from error
        return cls.parse(rows, source)


def _csv_row(cells: Sequence[str]) -> dict[str, Any]:
    """Named cells; numbers become numbers where they are, so that `check` judges them."""
    row: dict[str, Any] = dict(zip(CSV_HEADER, (cell.strip() for cell in cells), strict=False))
    if len(cells) > len(CSV_HEADER):
        row["column 5"] = cells[len(CSV_HEADER)]
    for name in ("latitude", "longitude"):
        try:
            row[name] = float(row[name])
        except (KeyError, ValueError):
            continue
    return row
