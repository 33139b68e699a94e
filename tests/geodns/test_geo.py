"""Coordinates, distances, prefix tables and the MMDB locator."""

from __future__ import annotations

import ipaddress
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.geodns.errors import PlacesUnreadable
from control_plane.geodns.places import (
    MmdbLocator,
    NowhereLocator,
    TableFirst,
    load_table,
    open_locator,
)
from runtime.validation import InvalidDocument
from tests.geodns.worlds import CITIES, PLACES, table, write_mmdb
from topology import geo
from topology.geo import Coordinates, PrefixRow, PrefixTable, distance_km

ip = ipaddress.ip_address


@pytest.mark.parametrize(
    ("a", "b", "km"),
    [
        ("london", "london", 0),
        ("london", "tokyo", 9_559),
        ("tokyo", "sydney", 7_820),
        ("mumbai", "riyadh", 2_770),
        ("sao-paulo", "london", 9_490),
    ],
)
def test_distances_agree_with_published_ones(a: str, b: str, km: float) -> None:
    got = distance_km(Coordinates(*CITIES[a]), Coordinates(*CITIES[b]))
    assert got == pytest.approx(km, rel=0.01, abs=0.001)


latitudes = st.floats(-90, 90)
longitudes = st.floats(-180, 180)
points = st.builds(Coordinates, latitudes, longitudes)


@given(points, points)
def test_distance_is_symmetric_and_at_most_half_the_globe(a: Coordinates, b: Coordinates) -> None:
    there, back = distance_km(a, b), distance_km(b, a)
    assert there == pytest.approx(back, abs=1e-6)
    assert 0 <= there <= math.pi * geo.EARTH_RADIUS_KM + 1e-6


def test_the_date_line_is_not_a_wall() -> None:
    assert distance_km(Coordinates(0, 179.9), Coordinates(0, -179.9)) < 25


def test_longest_prefix_wins_and_the_scope_has_no_hole() -> None:
    found = table()
    inside, outside = found.locate(ip("203.0.113.9")), found.locate(ip("203.0.1.1"))
    assert inside is not None
    assert (inside.city, inside.prefix_length) == ("Mumbai", 24)
    assert outside is not None
    # 203.0.0.0/16 has 203.0.113.0/24 taken out: 203.0.1.1 is answered for 203.0.0.0/18.
    assert (outside.city, outside.prefix_length) == ("Sydney", 18)


def test_addresses_in_no_prefix_have_no_place_but_a_hole() -> None:
    found = table()
    assert found.locate(ip("8.8.8.8")) is None
    assert found.hole_length(ip("8.8.8.8")) == 2  # the next prefix is 127.0.0.0/8


def test_an_ipv4_mapped_address_is_the_ipv4_address() -> None:
    found = table()
    assert found.locate(ip("::ffff:203.0.113.9")) == found.locate(ip("203.0.113.9"))


def test_an_empty_table_knows_nothing() -> None:
    empty = PrefixTable.build([])
    assert len(empty) == 0
    assert empty.locate(ip("192.0.2.1")) is None
    assert empty.hole_length(ip("192.0.2.1")) == 0


def test_the_default_route_covers_everything() -> None:
    found = PrefixTable.build([PrefixRow("0.0.0.0/0", "Anywhere", 0.0, 0.0)])
    place = found.locate(ip("255.255.255.255"))
    assert place is not None
    assert place.prefix_length == 0


# A small universe, so that prefixes nest, touch and collide: one /24 and one /120.
_BASES = {4: ip("192.0.2.0"), 6: ip("2001:db8::")}


def _block(version: int, low: int, below: int) -> Any:
    """The prefix of 2**below addresses around `low` in the universe of that version."""
    base = _BASES[version]
    return ipaddress.ip_network(f"{base + (low >> below << below)}/{base.max_prefixlen - below}")


versions = st.sampled_from([4, 6])
lows = st.integers(0, 255)
networks_ = st.sets(st.builds(_block, versions, lows, st.integers(0, 8)), max_size=25)


@given(networks_, versions, lows)
def test_the_table_agrees_with_a_naive_search(networks: set[Any], version: int, low: int) -> None:
    found = PrefixTable.build([PrefixRow(str(n), str(n), 0.0, 0.0) for n in networks])

    def naive(address: Any) -> str | None:
        holding = [n for n in networks if n.version == version and address in n]
        return str(max(holding, key=lambda n: n.prefixlen)) if holding else None

    address = _BASES[version] + low
    place = found.locate(address)
    assert (place.city if place else None) == naive(address)
    below = address.max_prefixlen - (place.prefix_length if place else found.hole_length(address))
    # Every address in the scope has the same answer, and in twice that scope some have not.
    if below <= 8:
        assert {naive(a) for a in _block(version, low, below)} == {naive(address)}
    if below <= 7:
        assert len({naive(a) for a in _block(version, low, below + 1)}) > 1


def test_every_mistake_of_a_table_is_reported() -> None:
    rows = [
        PrefixRow("198.18.1.0/24", "Tokyo", 0, 0),
        PrefixRow("198.18.1.7/24", "Host bits", 0, 0),
        PrefixRow("nonsense", "No prefix", 0, 0),
        PrefixRow("198.18.1.0/24", "Twice", 0, 0),
    ]
    with pytest.raises(InvalidDocument) as caught:
        PrefixTable.build(rows, "t")
    assert [problem.path for problem in caught.value.problems] == [
        "[1].prefix",
        "[2].prefix",
        "[3].prefix",
    ]


def test_a_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geo, "MAX_PREFIXES", 2)
    rows = [PrefixRow(f"10.0.{i}.0/24", "x", 0, 0) for i in range(3)]
    with pytest.raises(InvalidDocument, match="at most 2 rows"):
        PrefixTable.build(rows)


CSV = """# where clients are
prefix,city,latitude,longitude
198.18.1.0/24, Tokyo ,35.68,139.69
"""


def test_a_table_from_csv(tmp_path: Path) -> None:
    path = tmp_path / "places.csv"
    path.write_text(CSV)
    place = load_table(path).locate(ip("198.18.1.7"))
    assert place == geo.Place("Tokyo", 35.68, 139.69, 24)


def test_a_table_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "places.yaml"
    path.write_text("- {prefix: 198.18.1.0/24, city: Tokyo, latitude: 35.68, longitude: 139.69}\n")
    place = load_table(path).locate(ip("198.18.1.7"))
    assert place == geo.Place("Tokyo", 35.68, 139.69, 24)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "prefix,city,latitude,longitude"),
        ("prefix,city\n", "prefix,city,latitude,longitude"),
        ("prefix,city,latitude,longitude\n10.0.0.0/8,X,north,0\n", r"\[0\].latitude"),
        ("prefix,city,latitude,longitude\n10.0.0.0/8,X,91,0\n", r"\[0\].latitude"),
        ("prefix,city,latitude,longitude\n10.0.0.0/8,X,1\n", r"\[0\].longitude"),
        ("prefix,city,latitude,longitude\n10.0.0.0/8,X,1,2,3\n", "column 5"),
        ('prefix,city,latitude,longitude\n"10.0.0.0/8,X\n', "well-formed CSV"),
    ],
)
def test_csv_mistakes_say_where(text: str, told: str) -> None:
    with pytest.raises(InvalidDocument, match=told):
        PrefixTable.parse_csv(text, "t.csv")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PlacesUnreadable, match=r"missing\.csv"):
        load_table(tmp_path / "missing.csv")
    broken = tmp_path / "broken.yaml"
    broken.write_text("[")
    with pytest.raises(PlacesUnreadable, match="no YAML"):
        load_table(broken)
    with pytest.raises(PlacesUnreadable, match=r"missing\.mmdb"):
        MmdbLocator(tmp_path / "missing.mmdb")
    (tmp_path / "not.mmdb").write_bytes(b"not a database")
    with pytest.raises(PlacesUnreadable, match=r"not\.mmdb"):
        MmdbLocator(tmp_path / "not.mmdb")


def _rows() -> dict[str, tuple[str, float, float]]:
    return {row["prefix"]: (row["city"], row["latitude"], row["longitude"]) for row in PLACES}


@pytest.fixture
def mmdb(tmp_path: Path) -> Path:
    path = tmp_path / "city.mmdb"
    path.write_bytes(write_mmdb(_rows()))
    return path


@pytest.mark.parametrize(
    "address",
    ["198.18.1.7", "203.0.113.9", "203.0.1.1", "8.8.8.8", "2001:db8:1ff::1", "2001:db9::",
     "::ffff:203.0.113.9"],
)  # fmt: skip
def test_the_mmdb_locator_agrees_with_the_table(mmdb: Path, address: str) -> None:
    locator = MmdbLocator(mmdb)
    assert locator.locate(ip(address)) == table().locate(ip(address))
    locator.close()


def test_the_settings_choose_the_locator(mmdb: Path, tmp_path: Path) -> None:
    assert isinstance(open_locator(None, None), NowhereLocator)
    assert open_locator(None, None).locate(ip("8.8.8.8")) is None
    assert isinstance(open_locator(None, mmdb), MmdbLocator)
    csv = tmp_path / "t.csv"
    csv.write_text(CSV)
    assert isinstance(open_locator(csv, None), PrefixTable)
    assert isinstance(open_locator(csv, mmdb), TableFirst)
    assert isinstance(open_locator(None, None, [PrefixRow("10.0.0.0/8", "X", 0, 0)]), PrefixTable)


def test_the_operators_own_prefixes_outrank_the_database_and_narrow_its_scope(mmdb: Path) -> None:
    own = [PrefixRow("203.0.1.0/28", "Head office", 1.0, 2.0)]
    locator = open_locator(None, mmdb, own)
    office, beside = locator.locate(ip("203.0.1.3")), locator.locate(ip("203.0.1.16"))
    assert office == geo.Place("Head office", 1.0, 2.0, 28)
    assert beside is not None
    assert (beside.city, beside.prefix_length) == ("Sydney", 28)
    assert locator.locate(ip("8.8.8.8")) is None
