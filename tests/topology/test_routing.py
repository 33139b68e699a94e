"""Region choice: the order of the rules is the order of authority."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.topology.worlds import base, document
from topology.routing import Decision, RegionView, decide
from topology.snapshot import Snapshot

REGIONS = ("singapore", "frankfurt", "dubai")


def ask(snapshot: Snapshot, tenant: str = "acme", **views: RegionView) -> Decision:
    return decide(snapshot, "london", tenant, "small", views, now_s=1000.0, draw=0.5)


def order(decision: Decision) -> list[str]:
    return [candidate.region for candidate in decision.candidates]


def override(region: str, percent: float = 100.0, expires_s: float | None = None) -> dict:
    return document(
        "Override",
        region,
        region=region,
        action="drain",
        reason="maintenance",
        percent=percent,
        expires_s=expires_s,
    )


def test_the_nearest_by_published_distance_first() -> None:
    assert order(ask(base())) == ["frankfurt", "dubai", "singapore"]


def test_a_measurement_outranks_the_published_distance() -> None:
    views = {"frankfurt": RegionView(True, 400.0)}
    assert order(ask(base(), **views)) == ["dubai", "singapore", "frankfurt"]


def test_residency_outranks_everything() -> None:
    decision = ask(base(), tenant="eurobank")
    assert order(decision) == ["frankfurt"]
    assert {e.rule for e in decision.excluded} == {"residency"}


def test_a_tenant_whose_only_region_is_drained_is_refused_not_moved_abroad() -> None:
    decision = ask(base(override("frankfurt")), tenant="eurobank")
    assert order(decision) == []
    assert decision.refusal == "no_region"


def test_residency_that_no_region_meets() -> None:
    snapshot = base(document("Tenant", "moon", residency=["ZZ"]))
    assert ask(snapshot, tenant="moon").refusal == "residency"


@pytest.mark.parametrize(
    ("percent", "expires_s", "excluded"),
    [(100, None, True), (100, 1001, True), (100, 999, False), (49, None, False), (51, None, True)],
)
def test_overrides(percent: float, expires_s: float | None, excluded: bool) -> None:
    decision = ask(base(override("frankfurt", percent, expires_s)))
    assert ("frankfurt" not in order(decision)) is excluded
    if excluded:
        assert "maintenance" in decision.excluded[0].why


def test_an_unreachable_region_is_left_out() -> None:
    decision = ask(base(), frankfurt=RegionView(False))
    assert order(decision) == ["dubai", "singapore"]
    assert decision.excluded[0].rule == "unreachable"


def test_a_part_that_a_drain_takes_stays_where_the_others_cannot_be_reached() -> None:
    cut = {"dubai": RegionView(False), "singapore": RegionView(False)}
    partly = base(override("frankfurt", 90.0))
    assert order(ask(partly, **cut)) == ["frankfurt"]
    assert order(ask(base(override("frankfurt")), **cut)) == [], "the whole of it is meant"
    both = base(override("frankfurt", 90.0), override("dubai", 60.0))
    assert order(ask(both, singapore=RegionView(False))) == ["frankfurt", "dubai"]
    # Where the drain itself leaves a tenant nothing, that is what was asked for, and forced.
    assert ask(partly, tenant="eurobank").refusal == "no_region"


def test_the_narrower_route_wins() -> None:
    narrow = document("Route", "z", models=["*"], tenants=["acme"], regions=["dubai"])
    decision = ask(base(narrow))
    assert order(decision) == ["dubai"]
    assert decision.route == "z"


def test_ordered_preference() -> None:
    ordered = document(
        "Route",
        "all",
        models=["*"],
        tenants=["*"],
        regions=["singapore", "dubai", "frankfurt"],
        prefer="ordered",
    )
    assert order(ask(base(ordered))) == ["singapore", "dubai", "frankfurt"]


def test_refusals() -> None:
    snapshot = base(document("Tenant", "narrow", models=["small"]))
    assert decide(snapshot, "london", "acme", "big", {}, 0.0).refusal == "unknown_model"
    assert decide(snapshot, "london", "nobody", "small", {}, 0.0).refusal == "model_not_allowed"
    assert decide(snapshot, "london", "narrow", "small", {}, 0.0).refusal == ""


views = st.dictionaries(
    st.sampled_from(REGIONS),
    st.builds(RegionView, st.booleans(), st.none() | st.floats(0.1, 500)),
)


@given(
    views,
    st.sampled_from(["acme", "eurobank"]),
    st.dictionaries(st.sampled_from(REGIONS), st.floats(0, 100)),
    st.floats(0, 0.999),
)
def test_every_region_is_accounted_for_once(
    seen: dict[str, RegionView], tenant: str, drained: dict[str, float], draw: float
) -> None:
    snapshot = base(*(override(name, percent) for name, percent in drained.items()))
    decision = decide(snapshot, "london", tenant, "small", seen, 1000.0, draw)
    excluded = [e.region for e in decision.excluded]
    assert sorted(order(decision) + excluded) == sorted(REGIONS)
    rtts = [c.rtt_ms for c in decision.candidates]
    assert rtts == sorted(rtts)
    for candidate in decision.candidates:
        allowed = snapshot.tenants[tenant].residency
        assert allowed is None or snapshot.regions[candidate.region].jurisdiction in allowed
    assert bool(decision.refusal) is (not decision.candidates)
