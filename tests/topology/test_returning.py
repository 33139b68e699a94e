"""Regions that return from failing take a part of what they would be given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.topology.worlds import base
from topology.directive import Directive
from topology.paths import PathView
from topology.routing import Plan, RegionView, Views, _eased, plan

REGIONS = ("frankfurt", "dubai", "singapore")  # nearest first


def seen(**parts: float) -> Views:
    """Every region is reached, and takes this part."""
    return {
        name: RegionView(True, 10.0 * at, (PathView("", True, 10.0 * at),), 0.0, parts.get(name, 1))
        for at, name in enumerate(REGIONS, 1)
    }


def planned(views: Views, **shares: float) -> Plan:
    found = plan(base(), "london", "acme", "small", views, 0.0)
    if not shares:
        return found
    cls = found.steps[0].decisions[0].demand_class
    directive = Directive(shares={cls: shares})
    return plan(base(), "london", "acme", "small", views, 0.0, directive)


def firsts(found: Plan) -> dict[str, float]:
    return {region: round(share, 3) for region, share in found.first().items()}


@pytest.mark.parametrize(
    ("parts", "shares", "expected"),
    [
        ({}, {}, {"frankfurt": 1.0}),
        ({"frankfurt": 0.3}, {}, {"frankfurt": 0.3, "dubai": 0.7}),
        ({"dubai": 0.3}, {}, {"frankfurt": 1.0}),
        ({"frankfurt": 0.2, "dubai": 0.5}, {}, {"frankfurt": 0.2, "singapore": 0.8}),
        ({"frankfurt": 0.0}, {}, {"dubai": 1.0}),
        (dict.fromkeys(REGIONS, 0.1), {}, {"frankfurt": 1.0}),
        (
            {"frankfurt": 0.5},
            {"frankfurt": 0.6, "dubai": 0.3, "singapore": 0.1},
            {"frankfurt": 0.3, "dubai": 0.525, "singapore": 0.175},
        ),
        ({"frankfurt": 0.5}, {"frankfurt": 1.0}, {"frankfurt": 0.5, "dubai": 0.5}),
        (
            dict.fromkeys(REGIONS, 0.1),
            {"frankfurt": 0.5, "dubai": 0.5},
            {"frankfurt": 0.5, "dubai": 0.5},
        ),
    ],
)
def test_parts(
    parts: dict[str, float], shares: dict[str, float], expected: dict[str, float]
) -> None:
    assert firsts(planned(seen(**parts), **shares)) == expected


def test_who_returns_stays_where_requests_go_on() -> None:
    decision = planned(seen(frankfurt=0.3)).at(0.0, 0.9)
    assert [c.region for c in decision.candidates] == ["dubai", "frankfurt", "singapore"]


def test_who_is_tried_is_asked_where_nobody_else_can_be() -> None:
    views = dict(seen(frankfurt=0.0))
    views["dubai"] = views["singapore"] = RegionView(False)
    decision = planned(views).at(0.0, 0.0)
    assert [c.region for c in decision.candidates] == ["frankfurt"]


def test_several_cores_are_told_of() -> None:
    views = {"frankfurt": RegionView(True, 10.0, (PathView("", True, 10.0),), cores=3)}
    decision = planned(views).at(0.0, 0.0)
    assert {c.region: c.cores for c in decision.candidates}["frankfurt"] == 3


WEIGHTS = st.dictionaries(st.sampled_from(REGIONS), st.floats(0.001, 1.0), min_size=1)
PARTS = st.dictionaries(st.sampled_from(REGIONS), st.floats(0.01, 0.99), min_size=1)


@given(WEIGHTS, PARTS)
def test_nothing_is_lost_and_nobody_returns_with_more_than_its_part(
    weights: dict[str, float], parts: dict[str, float]
) -> None:
    total = sum(weights.values())
    weights = {region: weight / total for region, weight in weights.items()}
    eased = _eased(weights, list(REGIONS), parts)
    assert sum(eased.values()) == pytest.approx(1.0)
    assert all(share >= 0.0 for share in eased.values())
    if set(REGIONS) - set(parts):
        for region, part in parts.items():
            assert eased.get(region, 0.0) == pytest.approx(weights.get(region, 0.0) * part)
