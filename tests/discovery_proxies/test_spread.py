"""Where a proxy's requests go: as an edge's would, for every drain, and never into a region that
is drained, down or beyond the tenant's residency."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.directives.state import Drain, State, Verdict, directive_for
from control_plane.discovery.proxies.node import Profile
from control_plane.discovery.proxies.spread import Spread, World, shares, spread_for
from tests.discovery_proxies.worlds import (
    NOW_S,
    REGIONS,
    drain,
    link,
    region,
    resource,
    resources,
    world,
)
from topology.demand import DemandClass, demand_class
from topology.resources import Resource
from topology.routing import decide
from topology.snapshot import Snapshot

TOKYO = Profile("envoy", place="tokyo")
NOWHERE = Profile("envoy")
ANY = DemandClass("vip", tuple(sorted(REGIONS)))

percents = st.dictionaries(st.sampled_from(list(REGIONS)), st.integers(0, 100).map(float))


def oracle(here: World, tenant: str, model: str) -> tuple[dict[str, float], float]:
    """What requests that draw 0.0005, 0.0015, … come to at an edge in Tokyo."""
    where: Counter[str] = Counter()
    for step in range(1000):
        directive = directive_for(here.state, "edge/tokyo")
        draw = (step + 0.5) / 1000
        found = decide(here.snapshot, "tokyo", tenant, model, {}, NOW_S, draw, directive)
        where[found.candidates[0].region if found.candidates else ""] += 1
    refused = where.pop("", 0)
    return {name: count / 1000 for name, count in where.items()}, refused / 1000


@given(percents, st.sampled_from(["acme", "globex", "eurobank"]))
def test_a_proxy_beside_an_edge_sends_as_the_edge_does(away: dict[str, float], tenant: str) -> None:
    here = world(*(drain(name, percent) for name, percent in away.items()))
    demand = demand_class(here.snapshot, tenant, "smol")
    assert demand is not None
    spread = spread_for(here, TOKYO, demand)
    expected, refused = oracle(here, tenant, "smol")
    assert spread.shares == pytest.approx(expected, abs=0.002)
    assert spread.refused == pytest.approx(refused, abs=0.002)


@given(percents, st.booleans())
def test_shares_add_up_and_the_drained_get_none(away: dict[str, float], placed: bool) -> None:
    here = world(*(drain(name, percent) for name, percent in away.items()))
    spread = spread_for(here, TOKYO if placed else NOWHERE, ANY)
    assert sum(spread.shares.values()) + spread.refused == pytest.approx(1.0)
    drained = {name for name, percent in away.items() if percent == 100.0}
    assert not drained & {*spread.shares, *spread.standby}
    assert not set(spread.shares) & set(spread.standby)


@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1), min_size=1),
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 100).map(float)),
)
def test_a_drain_takes_its_percentage_of_what_a_region_had(
    weights: dict[str, float], some: dict[str, float]
) -> None:
    order = sorted(weights)
    idle = shares(order, weights, dict.fromkeys(order, 0.0))
    region_name = order[0]
    percent = some.get(region_name, 30.0)
    away = dict.fromkeys(order, 0.0) | {region_name: percent}
    moved = shares(order, weights, away)
    if len(order) > 1 or percent == 0:
        assert moved.refused == 0
    had = idle.shares.get(region_name, 0.0)
    assert moved.shares.get(region_name, 0.0) == pytest.approx(had * (1 - percent / 100))


def test_equal_without_a_place() -> None:
    spread = spread_for(world(), NOWHERE, ANY)
    assert spread.shares == pytest.approx(dict.fromkeys(REGIONS, 1 / 3))
    spread = spread_for(world(drain("dubai", 30)), NOWHERE, ANY)
    assert spread.shares["dubai"] == pytest.approx(0.7 / 3)
    assert spread.shares["singapore"] == pytest.approx(spread.shares["frankfurt"])


def test_a_place_that_nobody_knows_is_no_place() -> None:
    assert spread_for(world(), Profile("envoy", place="us-east-1"), ANY).shares == pytest.approx(
        dict.fromkeys(REGIONS, 1 / 3)
    )


def test_the_nearest_takes_all_and_the_others_stand_by_in_order() -> None:
    assert spread_for(world(), TOKYO, ANY) == Spread(
        {"singapore": 1.0}, standby=("dubai", "frankfurt")
    )
    # At a region: that one first; without a link, by distance.
    far = [
        region("dubai", "127.0.0.3:80", latitude=25.2, longitude=55.3),
        region("frankfurt", "127.0.0.2:80", latitude=50.1, longitude=8.7),
    ]
    assert spread_for(world(*far), Profile("envoy", place="frankfurt"), ANY) == Spread(
        {"frankfurt": 1.0}, standby=("dubai", "singapore")
    )


def test_a_route_that_orders_its_regions_outranks_nearness() -> None:
    ordered = DemandClass("vip", ("frankfurt", "singapore", "dubai"), ordered=True)
    for profile in (TOKYO, NOWHERE):
        spread = spread_for(world(), profile, ordered)
        assert spread == Spread({"frankfurt": 1.0}, standby=("singapore", "dubai"))


def test_a_paced_drain_stands_where_the_director_says() -> None:
    paced = drain("singapore", 100, over_s=600)
    assert spread_for(world(paced), TOKYO, ANY).shares == {"singapore": 1.0}
    told = State(
        number=1, drains={"singapore": Drain("singapore", 40.0, 100.0, NOW_S, override_revision=9)}
    )
    moved = spread_for(world(paced, state=told), TOKYO, ANY).shares
    assert moved == pytest.approx({"singapore": 0.6, "dubai": 0.4})


def test_the_directors_shares_are_followed_beside_its_edge() -> None:
    told = State(number=1, shares={"tokyo": {str(ANY): {"singapore": 0.5, "dubai": 0.5}}})
    assert spread_for(world(state=told), TOKYO, ANY).shares == pytest.approx(
        {"singapore": 0.5, "dubai": 0.5}
    )
    drained = world(drain("dubai", 100), state=told)
    assert spread_for(drained, TOKYO, ANY) == Spread({"singapore": 1.0}, standby=("frankfurt",))
    assert spread_for(world(state=told), NOWHERE, ANY).shares == pytest.approx(
        dict.fromkeys(REGIONS, 1 / 3)
    )


def test_what_the_director_sheds_is_refused() -> None:
    told = State(
        number=1,
        shares={"tokyo": {str(ANY): {"singapore": 0.8}}},
        shed={"tokyo": {str(ANY): 0.2}},
    )
    spread = spread_for(world(state=told), TOKYO, ANY)
    assert spread.shares == pytest.approx({"singapore": 0.8})
    assert spread.refused == pytest.approx(0.2)


def down(*names: str) -> State:
    return State(number=1, verdicts={name: Verdict(False, 0.0) for name in names})


def test_a_region_that_is_down_gets_none_while_there_is_another() -> None:
    assert spread_for(world(state=down("singapore")), TOKYO, ANY) == Spread(
        {"dubai": 1.0}, standby=("frankfurt",)
    )
    # All of them: trying costs no more than refusing, and the verdict may be old.
    everywhere = world(state=down(*REGIONS))
    assert spread_for(everywhere, TOKYO, ANY).shares == {"singapore": 1.0}
    # A drain is an operator's word, and outranks what is automatic.
    drained = world(drain("singapore", 100), state=down("dubai", "frankfurt"))
    assert "singapore" not in spread_for(drained, TOKYO, ANY).shares


def test_a_region_without_endpoints_is_no_place_for_proxies() -> None:
    bare = world(region("singapore"))
    assert spread_for(bare, TOKYO, ANY).shares == {"dubai": 1.0}
    none = world(*(region(name) for name in REGIONS))
    assert spread_for(none, TOKYO, ANY) == Spread(refused=1.0)


@given(
    st.lists(st.sampled_from(["SG", "EU", "AE", "US"]), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from(list(REGIONS)), min_size=1, max_size=3, unique=True),
    percents,
    st.booleans(),
)
def test_no_spread_leaves_the_residency(
    residency: list[str], regions: list[str], away: dict[str, float], placed: bool
) -> None:
    bank = resource("Tenant", "bank", residency=residency)
    route = resource("Route", "bank", models=["smol"], tenants=["bank"], regions=regions)
    here = world(bank, route, *(drain(name, percent) for name, percent in away.items()))
    demand = demand_class(here.snapshot, "bank", "smol")
    if demand is None:
        return
    spread = spread_for(here, TOKYO if placed else NOWHERE, demand)
    for name in (*spread.shares, *spread.standby):
        assert REGIONS[name] in residency
        assert name in regions


def test_links_of_another_edge_say_nothing() -> None:
    more: list[Resource] = [
        resource(
            "EdgeSite",
            "london",
            city="London",
            latitude=51.5,
            longitude=-0.1,
            jurisdiction="GB",
            addresses=["127.0.0.1"],
        ),
        link("london", "frankfurt", 15),
        link("london", "dubai", 110),
        link("london", "singapore", 170),
    ]
    assert len(Snapshot.build(1, [*resources(), *more])) == len(resources()) + 4
    spread = spread_for(world(*more), Profile("envoy", place="london"), ANY)
    assert spread == Spread({"frankfurt": 1.0}, standby=("dubai", "singapore"))
