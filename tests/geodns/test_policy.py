"""Which edges a client is sent to."""

from __future__ import annotations

import ipaddress
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.geodns.policy import SPREAD_BUCKETS, Choice, choose_edges, spread_of
from tests.geodns.worlds import ADDRESSES, ALL, CITIES, ZONE, snapshot, zone
from topology.errors import UnknownName
from topology.geo import Coordinates, Place, distance_km

SNAPSHOT = snapshot()


def at(city: str, prefix_length: int = 24) -> Place:
    latitude, longitude = CITIES[city]
    return Place(city, latitude, longitude, prefix_length)


@pytest.mark.parametrize(
    ("city", "down", "name", "edges"),
    [
        ("tokyo", set(), "api", ("tokyo", "mumbai")),
        ("london", set(), "api", ("london", "riyadh")),
        ("sydney", set(), "api", ("sydney", "tokyo")),
        ("tokyo", {"tokyo"}, "api", ("mumbai", "sydney")),
        ("tokyo", {"tokyo", "mumbai", "sydney"}, "api", ("riyadh", "london")),
        ("tokyo", set(), "one", ("london",)),
        ("mumbai", set(), "deep.er", ("tokyo",)),
        ("mumbai", {"tokyo"}, "deep.er", ("sydney",)),
        # Nothing is healthy: health is ignored.
        ("tokyo", ALL, "api", ("tokyo", "mumbai")),
        ("tokyo", {"london"}, "one", ("london",)),
        # Only one is left, although two may be answered.
        ("tokyo", ALL - {"sao-paulo"}, "api", ("sao-paulo",)),
    ],
)
def test_the_nearest_healthy_edges(
    city: str, down: set[str], name: str, edges: tuple[str, ...]
) -> None:
    assert choose_edges(SNAPSHOT, ZONE, name, at(city), ALL - down).edges == edges


def test_a_choice_explains_itself() -> None:
    choice = choose_edges(SNAPSHOT, ZONE, "api", at("tokyo"), ALL - {"tokyo"})
    assert choice.candidates[0].edge == "mumbai"
    assert choice.candidates[-1].edge == "tokyo"  # nearest, but unhealthy
    assert choice.candidates[-1].distance_km == pytest.approx(0, abs=0.1)
    assert choice.reason == "nearest to tokyo; 5 of 6 edges healthy"
    assert not choice.fail_open
    opened = choose_edges(SNAPSHOT, ZONE, "api", at("tokyo"), ())
    assert opened.fail_open
    assert "health is ignored" in opened.reason


@pytest.mark.parametrize(
    ("name", "place", "scope"),
    [
        ("api", at("tokyo", 17), 17),
        ("api", None, None),  # holds for the network asked about
        ("one", at("tokyo", 17), 0),  # there is nothing to choose
        ("one", None, 0),
    ],
)
def test_the_scope(name: str, place: Place | None, scope: int | None) -> None:
    assert choose_edges(SNAPSHOT, ZONE, name, place, ALL).scope == scope


@pytest.mark.parametrize(
    "name", ["api", "API", "api.tradewind.test", "api.tradewind.test.", "Api.Tradewind.Test"]
)
def test_names_may_be_relative_or_absolute(name: str) -> None:
    assert choose_edges(SNAPSHOT, ZONE, name, at("tokyo"), ALL).edges == ("tokyo", "mumbai")


def test_the_zone_itself_is_a_name() -> None:
    held = snapshot(zone(names=[{"name": "@", "edges": ["*"], "answers": 1}]))
    for name in ("@", ZONE, f"{ZONE}."):
        assert choose_edges(held, ZONE, name, at("sydney"), ALL).edges == ("sydney",)


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(UnknownName, match=r"tradewind\.test"):
        choose_edges(SNAPSHOT, "other.test", "api", None, ALL)
    with pytest.raises(UnknownName, match=r"api, one, deep\.er"):
        choose_edges(SNAPSHOT, ZONE, "nothing", None, ALL)


def test_a_zone_without_edges_answers_none() -> None:
    bare = snapshot(zone(names=[{"name": "api", "edges": ["*"]}]), edges=())
    choice = choose_edges(bare, ZONE, "api", None, ())
    assert (choice.edges, choice.fail_open, choice.scope) == ((), False, 0)


healthy_sets = st.sets(st.sampled_from(sorted(ALL)))
places = st.one_of(
    st.none(),
    st.builds(Place, st.just("x"), st.floats(-90, 90), st.floats(-180, 180), st.integers(0, 32)),
)
spreads = st.integers(0, SPREAD_BUCKETS - 1)


@given(places, healthy_sets, spreads)
def test_a_choice_always_keeps_its_promises(
    place: Place | None, healthy: set[str], spread: int
) -> None:
    choice = choose_edges(SNAPSHOT, ZONE, "api", place, healthy, spread)
    assert {c.edge for c in choice.candidates} == ALL
    assert len(set(choice.edges)) == len(choice.edges) == min(2, len(healthy) or 2)
    assert choice.fail_open == (not healthy)
    assert healthy == set() or set(choice.edges) <= healthy
    if place is not None:
        for group in (True, False):
            held = [c.distance_km for c in choice.candidates if c.healthy is group]
            assert held == sorted(held, key=lambda d: d if d is not None else -1.0)
        left_out = (healthy or ALL) - set(choice.edges)
        assert all(_far(place, e) <= _far(place, o) for e in choice.edges for o in left_out)


def _far(place: Place, edge: str) -> float:
    return distance_km(place.coordinates, Coordinates(*CITIES[edge]))


def _spread(healthy: frozenset[str]) -> list[Choice]:
    return [
        choose_edges(SNAPSHOT, ZONE, "api", None, healthy, spread)
        for spread in range(SPREAD_BUCKETS)
    ]


def test_unknown_clients_are_shared_out() -> None:
    first = Counter(choice.edges[0] for choice in _spread(ALL))
    even = SPREAD_BUCKETS / len(ALL)
    assert set(first) == ALL
    assert all(0.6 * even < count < 1.5 * even for count in first.values())


def test_an_edge_that_leaves_moves_only_the_clients_that_it_had() -> None:
    before, after = _spread(ALL), _spread(ALL - {"tokyo"})
    for old, new in zip(before, after, strict=True):
        if "tokyo" not in old.edges:
            assert old.edges == new.edges
        else:
            assert set(old.edges) - {"tokyo"} < set(new.edges)
    heirs = Counter(n.edges[0] for o, n in zip(before, after, strict=True) if o.edges[0] == "tokyo")
    assert len(heirs) == len(ALL) - 1  # not all to the same


def test_a_network_stays_together_and_networks_spread() -> None:
    ip = ipaddress.ip_address
    assert spread_of(ip("192.0.2.1")) == spread_of(ip("192.0.2.254"))
    assert spread_of(ip("192.0.2.1")) == spread_of(ip("::ffff:192.0.2.9"))
    assert spread_of(ip("2001:db8::1")) == spread_of(ip("2001:db8::ffff:1"))
    buckets = {spread_of(ip("10.0.0.0") + 256 * index) for index in range(4 * SPREAD_BUCKETS)}
    assert len(buckets) > 0.9 * SPREAD_BUCKETS


def test_the_world_of_these_tests_is_consistent() -> None:
    assert set(ADDRESSES) == set(CITIES)
