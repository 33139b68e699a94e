"""Assignment: against a naive linear program, tier after tier; and by hand."""

from __future__ import annotations

from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from topology import transport
from topology.assignment import RANK_MS, TIERS, Assignment, assign, class_cost
from topology.demand import DemandClass

REGIONS = ("r0", "r1", "r2", "r3")

Case = tuple[
    dict[str, dict[str, float]], dict[str, dict[str, float]], dict[str, float], dict[str, float]
]


def oracle(case: Case) -> tuple[dict[str, float], float]:
    """What is shed of each tier, and the total latency of the rest: the tiers one after the
    other, each as a dense program over every class, edge, part of a drain and region."""
    demand, cost, capacity, limits = case
    names = sorted(capacity)
    bounds = sorted({0.0, 1.0, *(1.0 - limits.get(r, 1.0) for r in names)})
    ways: list[tuple[int, str, str, float]] = []  # part, tier, region or "", cost
    parts: list[float] = []
    for edge, classes in demand.items():
        for text, tokens in classes.items():
            cls = DemandClass.parse(text)
            for low, high in pairwise(bounds):
                part = len(parts)
                parts.append(tokens * (high - low))
                ways.append((part, cls.tier, "", 0.0))
                for region in cls.regions:
                    if region in capacity and 1.0 - limits.get(region, 1.0) <= low + 1e-12:
                        ways.append((part, cls.tier, region, class_cost(cls, cost[edge], region)))
    use = np.array([[float(w[2] == r) for w in ways] for r in names])
    whole = np.array([[float(w[0] == p) for w in ways] for p in range(len(parts))])
    room = np.array([capacity[r] for r in names])
    fixed: list[tuple[np.ndarray[Any, Any], float]] = []

    def least(goal: np.ndarray[Any, Any]) -> float:
        most = [*use, *(row for row, _ in fixed)]
        limit = [*room, *(value + 1e-7 * (1 + value) for _, value in fixed)]
        done = linprog(goal, A_ub=np.array(most), b_ub=limit, A_eq=whole, b_eq=parts)
        assert done.success, done.message
        return float(done.fun)

    shed = {}
    for tier in reversed(TIERS):
        goal = np.array([float(w[1] == tier and not w[2]) for w in ways])
        shed[tier] = least(goal)
        fixed.append((goal, shed[tier]))
    return shed, least(np.array([w[3] for w in ways]))


def outcome(case: Case, found: Assignment) -> tuple[dict[str, float], float]:
    demand, cost, _, _ = case
    shed, total = dict.fromkeys(TIERS, 0.0), 0.0
    for edge, classes in demand.items():
        for text, tokens in classes.items():
            cls = DemandClass.parse(text)
            shed[cls.tier] += tokens * found.shed.get(edge, {}).get(text, 0.0)
            for region, share in found.shares[edge][text].items():
                total += tokens * share * class_cost(cls, cost[edge], region)
    return shed, total


@st.composite
def cases(draw: st.DrawFn) -> Case:
    edges = [f"e{n}" for n in range(draw(st.integers(1, 5)))]
    up = draw(st.lists(st.sampled_from(REGIONS), min_size=1, unique=True))
    classes = st.builds(
        lambda tier, regions, ordered: str(
            DemandClass(
                tier, tuple(regions if ordered else sorted(regions)), len(regions) > 1 and ordered
            )
        ),
        st.sampled_from(TIERS),
        st.lists(st.sampled_from(REGIONS), min_size=1, unique=True),
        st.booleans(),
    )
    tokens = st.integers(1, 40).map(float)
    demand = {e: draw(st.dictionaries(classes, tokens, min_size=1, max_size=3)) for e in edges}
    # Few different distances, so that many edges are alike and ties are common.
    ms = st.sampled_from([5.0, 20.0, 20.5, 90.0, 200.0])
    cost = {e: {r: draw(ms) for r in REGIONS} for e in edges}
    capacity = {r: draw(st.sampled_from([0.0, 10.0, 25.0, 60.0, 1000.0])) for r in up}
    limits = draw(st.dictionaries(st.sampled_from(REGIONS), st.sampled_from([0.0, 0.3, 0.75])))
    return demand, cost, capacity, limits


@settings(max_examples=100, deadline=None)
@given(cases())
def test_the_optimum_is_that_of_a_naive_program(case: Case) -> None:
    demand, cost, capacity, limits = case
    found = assign(demand, cost, capacity, limits)
    shed, total = outcome(case, found)
    expected_shed, expected_total = oracle(case)
    scale = 1.0 + sum(t for classes in demand.values() for t in classes.values())
    for tier in TIERS:
        assert shed[tier] == pytest.approx(expected_shed[tier], abs=1e-5 * scale)
    # Fixing what is shed leaves the program its tolerance, at the highest cost there is.
    slack = 1e-6 * 3 * RANK_MS * scale if sum(shed.values()) > 0 else 1e-6
    assert total == pytest.approx(expected_total, rel=1e-6, abs=slack)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_what_always_holds(case: Case) -> None:
    demand, cost, capacity, limits = case
    found = assign(demand, cost, capacity, limits)
    load = dict.fromkeys(capacity, 0.0)
    for edge, classes in demand.items():
        for text, tokens in classes.items():
            spread = found.shares[edge][text]
            lost = found.shed.get(edge, {}).get(text, 0.0)
            assert sum(spread.values()) + lost == pytest.approx(1.0)
            for region, share in spread.items():
                assert region in DemandClass.parse(text).regions
                assert share <= limits.get(region, 1.0) + 1e-9
                load[region] += share * tokens
    for region, tokens in load.items():
        assert tokens <= capacity[region] * (1 + 1e-9) + 1e-9
        assert found.load[region] == pytest.approx(tokens, abs=1e-9)


def test_everybody_goes_to_the_nearest_while_there_is_room() -> None:
    cost = {"a": {"r0": 10.0, "r1": 90.0}, "b": {"r0": 80.0, "r1": 20.0}}
    demand = {"a": {"standard:r0|r1": 50.0}, "b": {"standard:r0|r1": 50.0}}
    found = assign(demand, cost, {"r0": 60.0, "r1": 60.0})
    assert found.shares == {
        "a": {"standard:r0|r1": {"r0": 1.0}},
        "b": {"standard:r0|r1": {"r1": 1.0}},
    }
    assert (found.shed, found.prices) == ({}, {})


def test_who_loses_least_goes_further_and_the_price_says_how_much() -> None:
    cost = {"a": {"r0": 10.0, "r1": 90.0}, "b": {"r0": 30.0, "r1": 45.0}}
    demand = {"a": {"standard:r0|r1": 50.0}, "b": {"standard:r0|r1": 50.0}}
    found = assign(demand, cost, {"r0": 60.0, "r1": 60.0})
    assert found.shares["a"]["standard:r0|r1"] == {"r0": 1.0}
    assert found.shares["b"]["standard:r0|r1"] == pytest.approx({"r0": 0.2, "r1": 0.8})
    assert found.prices == pytest.approx({"r0": 15.0})


def test_standard_tenants_yield_before_vip_and_batch_before_both() -> None:
    cost = {"a": {"r0": 10.0}}
    demand = {"a": {"vip:r0": 40.0, "standard:r0": 40.0, "batch:r0": 40.0}}
    found = assign(demand, cost, {"r0": 60.0})
    assert found.shed == {"a": pytest.approx({"standard:r0": 0.5, "batch:r0": 1.0})}
    assert found.shares["a"]["vip:r0"] == pytest.approx({"r0": 1.0})


def test_vip_moves_so_that_standard_that_cannot_is_served() -> None:
    cost = {"a": {"r0": 10.0, "r1": 200.0}}
    demand = {"a": {"vip:r0|r1": 40.0, "standard:r0": 40.0}}
    found = assign(demand, cost, {"r0": 40.0, "r1": 40.0})
    assert found.shed == {}
    assert found.shares["a"]["vip:r0|r1"] == pytest.approx({"r1": 1.0})


def test_an_ordered_class_goes_down_its_list() -> None:
    cost = {"a": {"r0": 10.0, "r1": 20.0, "r2": 5.0}}
    found = assign({"a": {"vip:r1>r0>r2": 30.0}}, cost, {"r0": 20.0, "r1": 20.0, "r2": 20.0})
    assert found.shares["a"]["vip:r1>r0>r2"] == pytest.approx({"r1": 2 / 3, "r0": 1 / 3})
    assert found.prices == pytest.approx({"r1": RANK_MS})


def test_nothing_to_assign_and_nowhere_to_go() -> None:
    assert assign({}, {}, {"r0": 1.0}).shares == {}
    assert assign({"a": {"vip:r0": 0.0}}, {}, {"r0": 1.0}).shares == {}
    found = assign({"a": {"vip:r0": 5.0}}, {"a": {"r0": 1.0}}, {})
    assert found.shares["a"]["vip:r0"] == {}
    assert found.shed == {"a": {"vip:r0": 1.0}}


@pytest.mark.parametrize("load", [0.5, 0.95, 1.3])
@pytest.mark.parametrize("grain_ms", [0.01, 5.0])  # of distances: many ties, or none
def test_many_edges_are_where_price_and_distance_are_least(load: float, grain_ms: float) -> None:
    """What proves an optimum: nobody is better off elsewhere at the prices, and there is a price
    only where a region is full. It takes a fraction of a second, whatever the load."""
    rng = np.random.default_rng(11)
    names = [f"r{n}" for n in range(12)]
    at = rng.random((4, 2))[rng.integers(4, size=1500)] + 0.05 * rng.standard_normal((1500, 2))
    distance = np.sqrt(((rng.random((12, 2))[None] - at[:, None]) ** 2).sum(axis=2))
    grains = np.round((5 + 200 * distance) / grain_ms) * grain_ms
    cost = {f"e{n}": dict(zip(names, row, strict=True)) for n, row in enumerate(grains.tolist())}
    text = "standard:" + "|".join(sorted(names))
    demand = {
        edge: {text: float(t)} for edge, t in zip(cost, rng.pareto(1.5, 1500) + 0.1, strict=True)
    }
    room = rng.random(12) + 0.2
    room *= sum(d[text] for d in demand.values()) / load / room.sum()
    capacity = dict(zip(names, room.tolist(), strict=True))
    began = perf_counter()
    found = assign(demand, cost, capacity)
    assert perf_counter() - began < 5.0
    for edge, classes in found.shares.items():
        prices = {r: ms + found.prices.get(r, 0.0) for r, ms in cost[edge].items()}
        least = min(prices.values())
        for region in classes[text]:
            assert prices[region] == pytest.approx(least, abs=1e-5)
    for region in found.prices:
        assert found.load[region] == pytest.approx(capacity[region])


@pytest.mark.parametrize("part", [0.98, 1.0, 1.02, 1.05])
def test_room_that_ends_between_two_tiers_takes_no_longer(
    part: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is vip asks for `part` of the room, so that prices may lie anywhere between what
    it costs to shed standard and vip: with wrong ones nearly every demand was in the program."""
    rng = np.random.default_rng(4)
    edges, regions = 2000, [f"r{n}" for n in range(12)]
    classes = {tier: f"{tier}:" + "|".join(regions) for tier in ("vip", "standard")}
    asked = {tier: 100 * rng.pareto(1.6, edges) + 1 for tier in classes}
    demand = {
        f"e{n}": {classes[tier]: float(tokens[n]) for tier, tokens in asked.items()}
        for n in range(edges)
    }
    cost = {f"e{n}": dict(zip(regions, row, strict=True)) for n, row in enumerate(
        (4 + 220 * rng.random((edges, len(regions)))).tolist()
    )}  # fmt: skip
    room = {r: float(asked["vip"].sum()) / part / len(regions) for r in regions}
    in_programs = 0
    program = transport._program

    def counted(*arguments: Any) -> Any:
        nonlocal in_programs
        in_programs += len(arguments[-1])
        return program(*arguments)

    monkeypatch.setattr(transport, "_program", counted)
    found = assign(demand, cost, room)
    assert in_programs < 2 * edges  # each demand at most once
    vip_shed = sum(
        shed.get(classes["vip"], 0.0) * demand[edge][classes["vip"]]
        for edge, shed in found.shed.items()
    )
    over = max(0.0, float(asked["vip"].sum()) - sum(room.values()))
    assert vip_shed == pytest.approx(over, abs=1e-3)
