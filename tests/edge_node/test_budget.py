"""The retry budget: a share of recent requests, at least some a second, and never more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_node.forward.budget import WINDOW_S, Budget


def spend_all(budget: Budget, now: float, most: int = 10_000) -> int:
    spent = 0
    while spent < most and budget.spend(now):
        spent += 1
    return spent


def test_a_quiet_edge_may_retry_three_times_a_second() -> None:
    budget = Budget()
    assert [spend_all(budget, 100.0 + second) for second in range(5)] == [3] * 5
    assert spend_all(budget, 200.0) == 3  # what was not used does not add up
    assert (budget.spent, budget.refused) == (18, 6)


def test_a_tenth_of_recent_requests() -> None:
    budget = Budget()
    for request in range(1000):
        budget.note(50.0 + request / 200)  # 200 a second, for 5 s
    assert spend_all(budget, 55.0) == 100
    assert budget.allowance(55.0) == 0
    assert spend_all(budget, 55.5) == 1  # and three a second whatever happens
    assert spend_all(budget, 59.0) == 3
    # What was spent at 55 s is forgotten with the requests that it was a share of.
    assert spend_all(budget, 66.0) == 3


def test_a_steady_storm_is_retried_at_a_tenth() -> None:
    budget, spent = Budget(), 0
    for tick in range(3000):  # 100 requests a second for 30 s, all of which fail
        now = tick / 100
        budget.note(now)
        spent += budget.spend(now)
    assert 0.1 * 3000 <= spent <= 0.1 * 3000 + 3 * 30 + 3


@pytest.mark.parametrize(("share", "least", "spent"), [(0.0, 0.0, 0), (0.0, 2.0, 2), (1.0, 0.0, 7)])
def test_the_policy_is_followed(share: float, least: float, spent: int) -> None:
    budget = Budget(share, least)
    for _ in range(7):
        budget.note(3.0)
    assert spend_all(budget, 3.0) == spent


def test_a_policy_that_changes_holds_at_once() -> None:
    budget = Budget()
    for _ in range(100):
        budget.note(3.0)
    assert budget.spend(3.0)
    budget.share, budget.min_per_s = 0.0, 0.0
    assert not budget.spend(3.1)
    budget.min_per_s = 0.5
    assert not budget.spend(3.2)
    assert spend_all(budget, 6.0) == 1


def test_less_than_one_a_second_is_earned_over_seconds() -> None:
    budget = Budget(0.0, 0.25)
    times = [now for now in range(100, 140) if budget.spend(float(now))]
    assert times == list(range(100, 140, 4))


def test_a_clock_that_goes_back_earns_nothing() -> None:
    budget = Budget()
    assert spend_all(budget, 1000.0) == 3
    for back in (999.0, 500.0, 0.0):
        assert spend_all(budget, back) == 0
    budget.note(500.0)
    assert spend_all(budget, 1001.0) == 3


class Oracle:
    """The same from the whole past."""

    def __init__(self, share: float, least: float) -> None:
        self.share, self.least = share, least
        self.asked: list[int] = []
        self.spent: list[float] = []

    def spend(self, now: float) -> bool:
        recent = [t for t in self.asked if t > int(now) - WINDOW_S]
        paid = [t for t in self.spent if int(t) > int(now) - WINDOW_S]
        within = len(paid) < int(self.share * len(recent))
        if not within and self._floor(now) < 1.0:
            return False
        self.spent.append(now)
        return True

    def _floor(self, now: float) -> float:
        most = max(1.0, self.least) if self.least else 0.0
        level, at = most, 0.0
        for paid in self.spent:
            level = max(0.0, min(most, level + (paid - at) * self.least) - 1.0)
            at = paid
        return min(most, level + (now - at) * self.least)


STEPS = st.lists(
    st.tuples(st.sampled_from([0, 0, 1, 2, 8, 40, 120]), st.integers(0, 30), st.integers(0, 9)),
    max_size=25,
)


@given(STEPS, st.sampled_from([0.0, 0.125, 0.5]), st.sampled_from([0.0, 0.5, 3.0]))
def test_it_agrees_with_the_whole_past(
    steps: list[tuple[int, int, int]], share: float, least: float
) -> None:
    budget, oracle, now = Budget(share, least), Oracle(share, least), 64.0
    for eighths, requests, tries in steps:
        now += eighths / 8
        for _ in range(requests):
            budget.note(now)
        oracle.asked += [int(now)] * requests
        for _ in range(tries):
            assert budget.spend(now) == oracle.spend(now)
    assert budget.spent == len(oracle.spent)
    for begin in oracle.spent:  # no ten seconds hold more than their share and the least
        paid = sum(begin <= t < begin + WINDOW_S for t in oracle.spent)
        asked = sum(begin - WINDOW_S <= t < begin + WINDOW_S for t in oracle.asked)
        assert paid <= share * asked + least * WINDOW_S + max(1.0, least)
