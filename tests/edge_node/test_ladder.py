"""The degradation ladder: timed steps of pressure, and where a tier then stands."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_node.admission.comeback import LEAST_S, MOST_S, SPREAD, Comeback
from edge_node.admission.ladder import (
    PRESSURE_MAX,
    QUALITIES,
    STEP_S,
    Quality,
    TierLadder,
)
from topology.cursor import TIERS, Tier
from topology.policy import LADDER, RungPolicy

# For so long the wait is so much of what it may be; then it stands there.
Step = tuple[float, float, str]
TABLES: dict[str, list[Step]] = {
    "calm": [(10.0, 0.0, "full"), (10.0, 0.49, "full")],
    "a moment is no pressure": [(1.0, 0.0, "full"), (0.4, 5.0, "full"), (5.0, 0.1, "full")],
    "down step by step": [
        (1.0, 0.6, "quantised"), (1.0, 0.85, "stale"), (1.0, 1.2, "refused"),
    ],
    "all at once": [(0.7, 3.0, "refused")],
    "up by its own rungs' thresholds": [
        (1.0, 1.2, "refused"), (0.7, 0.45, "refused"), (1.0, 0.45, "stale"),
        (5.5, 0.3, "quantised"), (5.5, 0.1, "full"),
    ],
    "in between it stays": [(1.0, 0.6, "quantised"), (60.0, 0.3, "quantised")],
    "short relief does not count": [
        (1.0, 0.6, "quantised"), (4.0, 0.0, "quantised"), (0.2, 0.3, "quantised"),
        (4.0, 0.0, "quantised"), (2.0, 0.0, "full"),
    ],
}  # fmt: skip


def pushed(ladder: TierLadder, for_s: float, pressure: float, now: float) -> float:
    for _ in range(round(for_s / STEP_S)):
        now += STEP_S
        ladder.look(pressure, now)
    return now


@pytest.mark.parametrize("steps", TABLES.values(), ids=TABLES.keys())
def test_timed_steps(steps: list[Step]) -> None:
    ladder, now = TierLadder("standard"), 100.0
    for for_s, pressure, stands in steps:
        now = pushed(ladder, for_s, pressure, now)
        assert ladder.quality == stands, (for_s, pressure)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.0, 2.0), min_size=1, max_size=300))
@example([0.5, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8])  # two rungs are entered shortly one after the other
@example([1.0] * 8 + [0.3] * 60 + [1.0] * 8)
def test_no_flapping(pressures: list[float]) -> None:
    """Whatever the pressure does, one rung is not left within `leave_s` of being entered, nor
    entered within `enter_s` of being left."""
    ladder, now = TierLadder("standard"), 0.0
    rungs = ladder._rungs
    turned, entered = dict.fromkeys(range(len(rungs)), 0.0), [False] * len(rungs)
    for pressure in pressures:
        now += STEP_S
        ladder.look(pressure, now)
        for i, rung in enumerate(rungs):
            if rung.entered == entered[i]:
                continue
            least_s = rung.policy.leave_s if entered[i] else rung.policy.enter_s
            assert now - turned[i] >= least_s - STEP_S / 2
            turned[i], entered[i] = now, rung.entered
        lowest = max((rung.place for rung in rungs if rung.entered), default=0)
        assert ladder.place == lowest


def test_no_flapping_between_two_thresholds() -> None:
    ladder, now, moves, before = TierLadder("standard"), 0.0, 0, 0
    for step in range(6000):  # ten minutes, to and fro each second
        now += STEP_S
        ladder.look(0.6 if step // 10 % 2 else 0.1, now)
        moves += ladder.place != before
        before = ladder.place
    assert moves == 1


def asked(ladder: TierLadder, met: int, unmet: int) -> None:
    ladder.counts.met += met
    ladder.counts.unmet += unmet


def test_what_found_no_room_counts_as_a_share() -> None:
    ladder, now = TierLadder("standard"), 0.0
    ladder.look(0.0, now)
    for _ in range(20):
        now += STEP_S
        asked(ladder, 4, 6)
        ladder.look(0.0, now)
    assert ladder.pressure == pytest.approx(0.6)
    assert "60% of what looked for room found none" in ladder.standing().why
    assert ladder.quality == "quantised"
    for _ in range(80):
        now += STEP_S
        asked(ladder, 10, 0)
        ladder.look(0.0, now)
    assert ladder.pressure == 0.0
    assert ladder.quality == "full"


def test_one_refusal_among_a_few_requests_is_little_pressure() -> None:
    ladder = TierLadder("vip")
    ladder.look(0.0, 0.0)
    asked(ladder, 0, 1)
    ladder.look(0.0, 0.1)
    assert ladder.pressure == pytest.approx(0.1)


def test_recent_counts_by_quality() -> None:
    ladder, now = TierLadder("standard"), 0.0
    ladder.look(0.0, now)
    for _ in range(40):
        now += STEP_S
        ladder.count("full")
        ladder.count("stale")
        ladder.look(0.0, now)
    assert ladder.standing().recent == pytest.approx({"full": 10.0, "stale": 10.0})


def test_a_rung_counts_for_its_tiers_alone_and_another_ladder_at_once() -> None:
    ladder = TierLadder("vip")
    now = pushed(ladder, 1.0, 3.0, 0.0)
    assert ladder.quality == "refused"
    ladder.use([RungPolicy("full"), RungPolicy("stale", enter=0.5, tiers=("batch",))])
    assert ladder.quality == "full"
    now = pushed(ladder, 5.0, 3.0, now)
    assert ladder.quality == "full"
    assert ladder.rungs == {"full"}
    ladder.use(LADDER)
    pushed(ladder, 1.0, 3.0, now)
    assert ladder.quality == "refused"


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e9)), max_size=60))
def test_clocks_that_jump_break_nothing(steps: list[tuple[float, float]]) -> None:
    ladder = TierLadder("batch")
    for now, pressure in steps:
        asked(ladder, 1, 1)
        ladder.look(pressure, now)
        assert ladder.quality in QUALITIES
        assert 0 <= ladder.pressure <= PRESSURE_MAX
        assert all(rate >= 0 for rate in ladder.standing().recent.values())
    assert len(ladder._samples) <= len(steps)
    last = max((now for now, _ in steps), default=0.0)
    pushed(ladder, 12.0, 0.0, last)
    assert ladder.quality == "full"


def test_it_keeps_little_however_often_it_looks() -> None:
    ladder = TierLadder("batch")
    for step in range(10_000):
        ladder.look(0.2, step * STEP_S)
    assert len(ladder._samples) < 30


def test_qualities_are_those_of_the_policy() -> None:
    order: list[Quality] = [rung.quality for rung in LADDER]
    assert tuple(order) == QUALITIES


# When those who were turned away come back.


def test_they_come_back_one_after_the_other() -> None:
    comeback = Comeback()
    told = [comeback.after_s("standard", 0.5, 100.0, 1.0, 0.0, 10.0) for _ in range(1000)]
    assert told[0] == pytest.approx(0.51)
    assert told[-1] == pytest.approx(10.5)
    later = comeback.after_s("standard", 0.5, 100.0, 1.0, 0.0, 15.0)
    assert later == pytest.approx(5.51)  # half are due by then
    assert comeback.after_s("standard", 0.0, 100.0, 1.0, 0.0, 1e6) == pytest.approx(LEAST_S)


def test_after_a_peak_nobody_is_told_to_wait_for_those_who_find_room_now() -> None:
    comeback, now = Comeback(), 10.0
    for _ in range(2000):
        told_s = comeback.after_s("batch", 0.5, 100.0, 1.0, 0.0, now)
    assert told_s > 15
    now += 2.0  # the regions have less to do, and one of thirty still finds no room
    told_s = comeback.after_s("batch", 0.0, 10.0, 0.03, 0.0, now)
    assert told_s < 1.0


def test_regions_that_have_less_to_do_are_as_fast_as_they_were() -> None:
    comeback = Comeback()
    for _ in range(500):
        comeback.after_s("batch", 0.0, 100.0, 1.0, 0.0, 10.0)
    told_s = comeback.after_s("batch", 0.0, 10.0, 1.0, 0.0, 11.0)
    assert 4 < told_s < 6


def test_the_more_urgent_wait_for_none_of_the_others() -> None:
    comeback = Comeback()
    for _ in range(1000):
        comeback.after_s("batch", 0.0, 100.0, 1.0, 0.0, 10.0)
    assert comeback.after_s("vip", 0.0, 100.0, 1.0, 0.0, 10.0) == pytest.approx(LEAST_S)
    assert comeback.after_s("standard", 0.0, 100.0, 1.0, 0.0, 10.0) == pytest.approx(LEAST_S)
    assert comeback.after_s("batch", 0.0, 100.0, 1.0, 0.0, 10.0) == pytest.approx(10.03)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(TIERS), st.floats(0, 1e4), st.floats(0, 1e5), st.floats(0, 10),
            st.floats(0, 1, exclude_max=True), st.floats(-1e9, 1e9),
        ),
        max_size=50,
    )
)  # fmt: skip
def test_it_is_always_a_sane_time(
    steps: list[tuple[Tier, float, float, float, float, float]],
) -> None:
    comeback = Comeback()
    for step in steps:
        assert LEAST_S <= comeback.after_s(*step) <= MOST_S * (1 + SPREAD)
