"""Demand classes: who is alike."""

from __future__ import annotations

import pytest

from tests.topology.worlds import base, document
from topology.demand import DemandClass, demand_class
from topology.directive import NONE
from topology.routing import plan


@pytest.mark.parametrize(
    "cls",
    [
        DemandClass("vip", ("dubai",)),
        DemandClass("standard", ("dubai", "frankfurt")),
        DemandClass("batch", ("frankfurt", "dubai"), True),
        DemandClass("batch", ()),
    ],
)
def test_a_class_is_its_text(cls: DemandClass) -> None:
    assert DemandClass.parse(str(cls)) == cls


def test_classes_are_of_tier_route_model_and_residency() -> None:
    ordered = document(
        "Route",
        "z",
        models=["*"],
        tenants=["vip"],
        regions=["singapore", "dubai"],
        prefer="ordered",
    )
    snapshot = base(ordered, document("Tenant", "vip", tier="vip"))
    assert str(demand_class(snapshot, "acme", "small")) == "standard:dubai|frankfurt|singapore"
    assert str(demand_class(snapshot, "eurobank", "small")) == "standard:frankfurt"
    assert str(demand_class(snapshot, "vip", "small")) == "vip:singapore>dubai"


def test_there_is_none_where_nothing_may_serve() -> None:
    snapshot = base(
        document("Tenant", "moon", residency=["ZZ"]), document("Tenant", "n", models=["small"])
    )
    assert demand_class(snapshot, "moon", "small") is None
    assert demand_class(snapshot, "acme", "unknown") is None
    assert demand_class(snapshot, "nobody", "small") is None


@pytest.mark.parametrize("tenant", ["acme", "eurobank"])
def test_an_edge_names_the_same_class(tenant: str) -> None:
    snapshot = base()
    only = plan(snapshot, "london", tenant, "small", {}, 0.0, NONE).only
    assert only is not None
    assert only.demand_class == str(demand_class(snapshot, tenant, "small"))
