"""Routing by the director's shares: how often each region is first, and what outranks them."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.topology.test_routing import override
from tests.topology.worlds import base
from topology.directive import Directive
from topology.routing import Plan, RegionView, Views, decide, plan

REGIONS = ("singapore", "frankfurt", "dubai")
ALL = "standard:dubai|frankfurt|singapore"
EU = "standard:frankfurt"


def planned(
    shares: dict[str, float],
    *overrides: dict,
    tenant: str = "acme",
    down: tuple[str, ...] = (),
    cut: tuple[str, ...] = (),
) -> Plan:
    views: Views = {region: RegionView(False) for region in cut}
    told = Directive(shares={ALL: shares, EU: shares} if shares else {}, down=down)
    return plan(base(*overrides), "london", tenant, "small", views, 1000.0, told)


def test_the_first_region_is_drawn_by_share_and_the_rest_follow_by_share() -> None:
    found = planned({"frankfurt": 0.5, "dubai": 0.2, "singapore": 0.3})
    assert found.first() == pytest.approx({"frankfurt": 0.5, "dubai": 0.2, "singapore": 0.3})
    orders = {tuple(c.region for c in d.candidates) for d in found.steps[0].decisions}
    assert orders == {
        ("frankfurt", "singapore", "dubai"),
        ("singapore", "frankfurt", "dubai"),
        ("dubai", "frankfurt", "singapore"),
    }


def test_a_region_without_a_share_comes_last_by_latency() -> None:
    found = planned({"singapore": 1.0})
    assert found.only is not None
    assert [c.region for c in found.only.candidates] == ["singapore", "frankfurt", "dubai"]
    assert [c.share for c in found.only.candidates] == [1.0, 0.0, 0.0]


def test_what_is_shed_is_no_reason_to_refuse() -> None:
    assert planned({"frankfurt": 0.3, "dubai": 0.1}).first() == pytest.approx(
        {"frankfurt": 0.75, "dubai": 0.25}
    )


def test_others_take_over_the_share_of_a_region_that_is_cut_off() -> None:
    shares = {"frankfurt": 0.5, "dubai": 0.2, "singapore": 0.3}
    found = planned(shares, cut=("frankfurt",))
    assert found.first() == pytest.approx({"dubai": 0.4, "singapore": 0.6})
    assert planned({"frankfurt": 1.0}, cut=("frankfurt",)).first() == {"dubai": 1.0}


def test_what_is_down_for_everybody_is_left_out_but_outranks_nothing_at_all() -> None:
    found = planned({"frankfurt": 1.0}, down=("frankfurt",))
    assert found.first() == {"dubai": 1.0}
    assert [(e.region, e.rule) for e in found.steps[0].decisions[0].excluded] == [
        ("frankfurt", "down")
    ]
    open_to_all = planned({}, down=REGIONS)
    assert open_to_all.first() == {"frankfurt": 1.0}
    # It is the tenant's only region: better tried than refused.
    assert planned({}, tenant="eurobank", down=("frankfurt",)).first() == {"frankfurt": 1.0}


def test_residency_outranks_shares() -> None:
    found = planned({"singapore": 1.0}, tenant="eurobank")
    assert found.first() == {"frankfurt": 1.0}


def test_a_drain_leaves_a_region_no_more_than_its_part() -> None:
    shares = {"frankfurt": 1.0}
    assert planned(shares, override("frankfurt", 30)).first() == pytest.approx(
        {"frankfurt": 0.7, "dubai": 0.3}
    )
    assert planned(shares, override("frankfurt", 100)).first() == {"dubai": 1.0}


def test_a_share_that_heeds_the_drain_is_kept_whole() -> None:
    shares = {"frankfurt": 0.6, "dubai": 0.3, "singapore": 0.1}
    assert planned(shares, override("frankfurt", 30)).first() == pytest.approx(shares)


share = st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])
shared = st.fixed_dictionaries(dict.fromkeys(REGIONS, share))
percents = st.dictionaries(
    st.sampled_from(REGIONS), st.sampled_from([0.0, 20.0, 50.0, 80.0, 100.0])
)
cuts = st.frozensets(st.sampled_from(REGIONS))


@given(shared, percents, cuts, cuts, st.sampled_from(["acme", "eurobank"]))
def test_every_plan_keeps_the_rules(
    shares: dict[str, float],
    drained: dict[str, float],
    cut: frozenset[str],
    down: frozenset[str],
    tenant: str,
) -> None:
    overrides = [override(r, p) for r, p in drained.items()]
    told = Directive(shares={ALL: shares, EU: shares}, down=tuple(sorted(down)))
    views: Views = {r: RegionView(r not in cut, 10.0) for r in REGIONS}
    snapshot = base(*overrides)
    found = plan(snapshot, "london", tenant, "small", views, 1000.0, told)
    first = found.first()
    refused = 1.0 - sum(first.values())
    assert -1e-9 <= refused <= 1.0 + 1e-9
    may = set(REGIONS) if tenant == "acme" else {"frankfurt"}
    for region, part in first.items():
        percent = drained.get(region, 0.0)
        # What a drain takes a part from keeps it where those that should have it are cut off.
        kept = bool(may & cut) and percent < 100.0
        assert kept or part <= 1.0 - percent / 100.0 + 1e-9
        assert region not in cut
        assert tenant == "acme" or region == "frankfurt"
        assert region not in down or first.keys() <= down or drained
    for step in found.steps:
        assert step.cumulative[-1] == pytest.approx(1.0)
        for decision in step.decisions:
            named = [c.region for c in decision.candidates] + [e.region for e in decision.excluded]
            assert sorted(named) == sorted(REGIONS)


@settings(max_examples=15, deadline=None)
@given(shared, percents, st.integers(0, 1000))
def test_what_is_drawn_is_what_the_plan_says(
    shares: dict[str, float], drained: dict[str, float], seed: int
) -> None:
    overrides = [override(r, p) for r, p in drained.items()]
    snapshot, told = base(*overrides), Directive(shares={ALL: shares})
    expected = plan(snapshot, "london", "acme", "small", {}, 1000.0, told).first()
    rng, seen, times = Random(seed), dict.fromkeys(REGIONS, 0), 400
    for _ in range(times):
        decision = decide(
            snapshot, "london", "acme", "small", {}, 1000.0, rng.random(), told, rng.random()
        )
        if decision.candidates:
            seen[decision.candidates[0].region] += 1
    for region in REGIONS:
        # Six standard deviations at the most.
        assert seen[region] / times == pytest.approx(expected.get(region, 0.0), abs=0.15)
