"""Shares follow what is best: without haste, not to and fro, and in the end."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings

from tests.topology.test_assignment import Case, cases
from topology.assignment import Shares, assign
from topology.damping import advance_shares
from topology.demand import DemandClass
from topology.policy import DirectorPolicy

ANY = "standard:r0|r1"
POLICY = DirectorPolicy()
COST = {"a": {"r0": 10.0, "r1": 90.0}, "b": {"r0": 20.0, "r1": 80.0}}


def step(
    held: Shares,
    demand: dict[str, dict[str, float]],
    capacity: dict[str, float],
    cost: dict[str, dict[str, float]] = COST,
    limits: dict[str, float] | None = None,
    policy: DirectorPolicy = POLICY,
) -> Shares:
    wanted = assign(demand, cost, capacity, limits).shares
    return advance_shares(held, wanted, demand, cost, capacity, policy, limits)


def asking(a: float, b: float) -> dict[str, dict[str, float]]:
    return {"a": {ANY: a}, "b": {ANY: b}}


def test_a_quiet_world_is_told_nothing() -> None:
    assert step({}, asking(30, 30), {"r0": 100.0, "r1": 100.0}) == {}


def test_an_overload_is_relieved_a_step_at_a_time() -> None:
    demand, capacity = asking(60, 60), {"r0": 100.0, "r1": 100.0}
    shares = step({}, demand, capacity)
    assert shares == {"b": {ANY: pytest.approx({"r0": 0.9, "r1": 0.1})}}
    for _ in range(10):
        shares = step(shares, demand, capacity)
    load = 60 + 60 * shares["b"][ANY]["r0"]
    assert 100 - 1e-6 <= load <= 110


def test_it_all_goes_home_when_the_event_is_over() -> None:
    shares: Shares = {"b": {ANY: {"r0": 0.3, "r1": 0.7}}}
    seen = []
    for _ in range(12):
        shares = step(shares, asking(30, 30), {"r0": 100.0, "r1": 100.0})
        seen.append(shares.get("b", {}).get(ANY, {"r0": 1.0})["r0"])
    assert seen[:3] == pytest.approx([0.4, 0.5, 0.6])
    assert shares == {}


def test_a_region_that_is_down_is_left_at_once() -> None:
    shares = step({"b": {ANY: {"r0": 0.5, "r1": 0.5}}}, asking(10, 10), {"r0": 100.0})
    assert shares == {}  # all to the only one left, as the edge does by itself
    held: Shares = {"a": {"standard:r0|r1|r2": {"r0": 0.6, "r2": 0.4}}}
    demand = {"a": {"standard:r0|r1|r2": 50.0}}
    cost = {"a": {"r0": 10.0, "r1": 90.0, "r2": 50.0}}
    shares = step(held, demand, {"r0": 20.0, "r1": 100.0}, cost)
    assert shares["a"]["standard:r0|r1|r2"].keys() == {"r0", "r1"}


def test_a_small_gain_moves_nobody() -> None:
    cost = {"a": {"r0": 100.0, "r1": 106.0}}
    held: Shares = {"a": {ANY: {"r1": 1.0}}}
    demand, capacity = {"a": {ANY: 10.0}}, {"r0": 100.0, "r1": 100.0}
    assert step(held, demand, capacity, cost) == held  # 6 ms
    cost = {"a": {"r0": 200.0, "r1": 215.0}}
    assert step(held, demand, capacity, cost) == held  # 15 ms, but only 7%
    cost = {"a": {"r0": 100.0, "r1": 130.0}}
    assert step(held, demand, capacity, cost)["a"][ANY] == pytest.approx({"r1": 0.9, "r0": 0.1})


def test_a_drained_part_leaves_at_once() -> None:
    held: Shares = {"a": {ANY: {"r0": 0.9, "r1": 0.1}}}
    demand, capacity = {"a": {ANY: 10.0}}, {"r0": 5.0, "r1": 100.0}
    shares = step(held, demand, capacity, limits={"r0": 0.6})
    assert shares["a"][ANY]["r0"] <= 0.6 + 1e-9


def test_noise_moves_nobody_to_and_fro() -> None:
    rng = Random(7)
    capacity = {"r0": 100.0, "r1": 100.0}
    shares: Shares = {}
    for _ in range(30):
        shares = step(shares, asking(80, 60), capacity)
    directions = []
    for _ in range(300):
        noisy = asking(80 * rng.uniform(0.96, 1.04), 60 * rng.uniform(0.96, 1.04))
        cost = {
            e: {r: ms * rng.uniform(0.97, 1.03) for r, ms in line.items()}
            for e, line in COST.items()
        }
        after = step(shares, noisy, capacity, cost)
        change = _home(after) - _home(shares)
        if abs(change) > 1e-6:
            directions.append(change > 0)
        shares = after
    turns = sum(a != b for a, b in pairwise(directions))
    assert turns <= 1, directions
    assert len(directions) < 40


def _home(shares: Shares) -> float:
    return shares.get("b", {}).get(ANY, {"r0": 1.0}).get("r0", 0.0)


@settings(max_examples=30, deadline=None)
@given(cases(), cases())
def test_from_any_world_to_any_other(before: Case, after: Case) -> None:
    """Whatever was held, shares stay within bounds on the way and come to rest."""
    demand, cost, capacity, limits = after
    old_demand, old_cost, old_capacity, old_limits = before
    held: Shares = {}
    for _ in range(3):
        held = step(held, old_demand, old_capacity, old_cost, old_limits)
    wanted = assign(demand, cost, capacity, limits)
    for second in range(30):
        earlier, held = (
            held,
            advance_shares(held, wanted.shares, demand, cost, capacity, POLICY, limits),
        )
        for edge, classes in held.items():
            for text, spread in classes.items():
                cls = DemandClass.parse(text)
                assert set(spread) <= set(cls.regions) & set(capacity)
                lost = round(wanted.shed.get(edge, {}).get(text, 0.0), 2)
                # Both are rounded to whole percents, each by itself.
                assert sum(spread.values()) + lost == pytest.approx(1.0, abs=0.0101)
                old = earlier.get(edge, {}).get(text)
                if second and old is not None:
                    moved = sum(max(0.0, p - spread.get(r, 0.0)) for r, p in old.items())
                    assert moved <= POLICY.move_per_step + 1e-6
    assert held == advance_shares(held, wanted.shares, demand, cost, capacity, POLICY, limits)


@settings(max_examples=30, deadline=None)
@given(cases())
def test_no_region_stays_too_full(case: Case) -> None:
    demand, cost, capacity, limits = case
    wanted = assign(demand, cost, capacity, limits)
    held: Shares = {}
    for _ in range(60):
        held = advance_shares(held, wanted.shares, demand, cost, capacity, POLICY, limits)
    load = dict.fromkeys(capacity, 0.0)
    for edge, classes in wanted.shares.items():
        for text, best in classes.items():
            spread = held.get(edge, {}).get(text)
            if spread is None:
                continue
            for region, share in spread.items():
                load[region] += share * demand[edge][text]
            assert best or not spread
    for region, tokens in load.items():
        assert tokens <= 1.1 * capacity[region] + 0.011 * sum(
            t for classes in demand.values() for t in classes.values()
        )
