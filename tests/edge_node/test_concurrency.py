"""The limit of requests in a region: finds room, keeps the delay, lets nothing break it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_node.admission.concurrency import START, WINDOW_S, Concurrency

TARGET_S = 0.25
# Queue, load and rate that the region shows in a window, requests in flight in it, and the limit
# after it as a share of the one before: at least, at most.
Step = tuple[float, float, float, float, float, float]

ROOM: list[Step] = [
    (0.0, 0.1, 20.0, 1.0, 1.9, 2.0),  # nobody waits, and much is free: twofold
    (0.0, 0.8, 20.0, 1.0, 1.05, 1.3),  # a quarter is free
    (0.0, 0.1, 20.0, 0.5, 1.0, 1.0),  # there is room, but nobody uses it
    (0.25, 1.0, 20.0, 1.0, 0.98, 1.05),  # as aimed at
]
FULL: list[Step] = [
    (1.0, 1.5, 20.0, 1.0, 0.7, 0.92),  # 20 a second wait 0.75 s too long
    (60.0, 1.5, 20.0, 1.0, 0.7, 0.75),  # whatever it says, a window takes no more than that
    (1.0, 1.5, 0.0, 1.0, 0.7, 0.75),  # nothing has ended yet
    (1.0, 1.5, 20.0, 0.1, 0.1, 0.3),  # others fill it: what is not used here is given up
]


def stepped(limit: Concurrency, now: float, step: Step) -> float:
    queue_s, load, rate, used, _, _ = step
    in_flight = int(limit.limit * used)
    limit.sent(in_flight)
    limit.waits(queue_s, load)
    limit.turn(now, in_flight - 1, rate)
    return limit.limit


@pytest.mark.parametrize("step", ROOM + FULL)
def test_a_window_changes_it_so(step: Step) -> None:
    limit = Concurrency(4, 4096, TARGET_S)
    limit.turn(0.0, 0, 0.0)
    share = stepped(limit, WINDOW_S, step) / START
    assert step[4] <= share <= step[5]


def test_a_cold_edge_finds_a_sixteenfold_room_within_a_second() -> None:
    limit, now = Concurrency(4, 4096, TARGET_S), 0.0
    limit.turn(now, 0, 0.0)
    while now < 0.85:
        now += WINDOW_S
        stepped(limit, now, (0.0, 0.05, 100.0, 1.0, 0, 0))
    assert limit.limit >= 16 * START


def test_having_met_the_end_it_grows_by_little_and_soon_by_much() -> None:
    limit = Concurrency(4, 4096, TARGET_S)
    limit.turn(0.0, 0, 0.0)
    stepped(limit, 0.2, (2.0, 1.5, 10.0, 1.0, 0, 0))
    grown = []
    for window in range(2, 9):
        before = limit.limit
        after = stepped(limit, window * WINDOW_S, (0.0, 0.3, 0.1, 1.0, 0, 0))
        grown.append(after / before)
    assert grown[0] < 1.1 and grown == sorted(grown) and grown[-1] == pytest.approx(2.0)


def test_what_a_storm_has_taught_is_forgotten_when_it_is_over() -> None:
    limit, now = Concurrency(4, 4096, TARGET_S), 0.0
    limit.limit = 5.0
    limit.turn(now, 0, 0.0)
    for _ in range(30):
        now += WINDOW_S
        stepped(limit, now, (0.0, 0.3, 5.0, 0.2, 0, 0))
    assert limit.limit == START


def test_nothing_measured_changes_nothing() -> None:
    limit = Concurrency(4, 4096, TARGET_S)
    for second in range(100):
        limit.pressed = True
        assert not limit.turn(float(second), 64, 0.0)
    assert limit.limit == START


def test_refusals_cut_it_and_their_places_stay_taken_for_a_window() -> None:
    limit = Concurrency(4, 4096, TARGET_S)
    limit.turn(0.0, 0, 0.0)
    limit.sent(64)
    limit.waits(0.0, 1.0)
    limit.refused()
    assert limit.lost == 1
    limit.turn(WINDOW_S, 63, 20.0)
    assert limit.limit == pytest.approx(0.75 * 64)  # half were refused
    assert limit.lost == 0


def test_the_policy_bounds_it_at_once() -> None:
    limit = Concurrency(4, 4096, TARGET_S)
    limit.use(1, 10, TARGET_S)
    assert limit.limit == 10
    limit.use(20, 10, TARGET_S)  # a least above the most counts
    assert limit.limit == 20


def test_workers_that_differ_come_to_equal_parts() -> None:
    """Two of them in one region of 100 slots that answers in half a second, by turns of windows."""
    big, small = Concurrency(4, 4096, TARGET_S), Concurrency(4, 4096, TARGET_S)
    big.limit, small.limit = 120.0, 20.0
    for limit in (big, small):
        limit.turn(0.0, 0, 0.0)
    for window in range(1, 200):
        total = big.limit + small.limit
        queue_s = max(0.0, total - 100) / 200
        for limit in (big, small):
            rate = 200 * limit.limit / total
            stepped(limit, window * WINDOW_S, (queue_s, total / 100, rate, 1.0, 0, 0))
    assert big.limit < 1.3 * small.limit
    assert 0.1 <= (big.limit + small.limit - 100) / 200 <= 1.4 * TARGET_S


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["sent", "waits", "refused", "pressed", "turn"]),
        st.floats(-1e6, 1e6),  # a clock that goes anywhere
        st.floats(0, 60),
        st.integers(0, 10_000),
    ),
    max_size=60,
)


@given(EVENTS, st.integers(1, 100), st.integers(1, 5_000), st.floats(0, 1e6))
def test_it_stays_within_its_bounds_whatever_happens(
    events: list[tuple[str, float, float, int]], least: int, most: int, rate: float
) -> None:
    limit = Concurrency(least, most, TARGET_S)
    for kind, now, queue_s, in_flight in events:
        before = limit.limit
        if kind == "sent":
            limit.sent(in_flight)
        elif kind == "waits":
            limit.waits(queue_s, queue_s / 10)
        elif kind == "refused":
            limit.refused()
        elif kind == "pressed":
            limit.pressed = True
        elif limit.due(now):
            rose = limit.turn(now, in_flight, rate)
            assert rose == (limit.limit > before)
            assert not limit.due(now)
            assert (
                limit.limit <= max(2.0 * before, least) + 0.5 * (rate * TARGET_S + 1) ** 0.667 + 1
            )
        assert least <= limit.limit <= max(least, most)
