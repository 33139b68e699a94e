"""Demand classes: who is alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.topology.worlds import base, document
from topology import resources as res
from topology.demand import DemandClass, demand_class, route_for
from topology.directive import NONE
from topology.routing import plan
from topology.snapshot import Snapshot


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


@given(
    routes=st.dictionaries(
        st.sampled_from("abcdef"),
        st.tuples(
            st.lists(st.sampled_from(["*", "acme", "eurobank"]), min_size=1, unique=True),
            st.lists(st.sampled_from(["*", "small", "large"]), min_size=1, unique=True),
        ),
    ),
    tenant=st.sampled_from(["acme", "eurobank", "other"]),
    model=st.sampled_from(["small", "large", "none"]),
)
def test_the_route_is_the_narrowest(
    routes: dict[str, tuple[list[str], list[str]]], tenant: str, model: str
) -> None:
    fitting = [
        (tenant not in tenants, model not in models, name)
        for name, (tenants, models) in routes.items()
        if {"*", tenant} & set(tenants) and {"*", model} & set(models)
    ]
    documents = [
        res.parse(
            document("Route", name, tenants=tenants, models=models, regions=["dubai"]), "test"
        )
        for name, (tenants, models) in routes.items()
    ]
    by_kind = {kind: {r.name: r for r in documents if r.kind == kind} for kind in res.KINDS}
    found = route_for(Snapshot(1, by_kind), tenant, model)
    assert (found[0] if found else None) == (min(fitting)[2] if fitting else None)
