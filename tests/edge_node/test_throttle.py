"""Client-side throttling: held back by the share that is refused, and not a moment longer."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_node.admission.throttle import Throttle

WINDOW_S = 30.0


def oracle(events: list[tuple[float, str]], now: float, k: float) -> float:
    """The formula, over whole slots of the window, counted anew."""
    slot_s = WINDOW_S / 10
    past = [kind for when, kind in events if int(now // slot_s) - int(when // slot_s) < 10]
    requests = past.count("sent") + past.count("held")
    accepts = max(0, past.count("sent") - past.count("refused"))
    return max(0.0, (requests - k * accepts) / (requests + 1))


@pytest.mark.parametrize(
    ("sent", "refused", "held", "share"),
    [
        (100, 0, 0, 0.0),
        (100, 50, 0, 0.0),  # half of them are accepted: K is 2
        (100, 75, 0, 50 / 101),
        (100, 100, 0, 100 / 101),  # never all: something must find out that it is over
        (100, 75, 100, 150 / 201),
    ],
)
def test_by_the_book(sent: int, refused: int, held: int, share: float) -> None:
    throttle = Throttle(2.0, WINDOW_S)
    for _ in range(sent):
        throttle.sent(1.0)
    for _ in range(refused):
        throttle.refused(1.1)
    for _ in range(held):
        throttle.held(1.2)
    assert throttle.share(1.3) == pytest.approx(share)


def test_a_sudden_load_by_itself_holds_nobody_back() -> None:
    throttle, rng = Throttle(2.0, WINDOW_S), Random(1)
    for request in range(10_000):
        assert not throttle.holds(request / 10_000, rng)
        throttle.sent(request / 10_000)


def test_the_past_is_forgotten_by_time_and_by_word() -> None:
    throttle = Throttle(2.0, WINDOW_S)
    for _ in range(10):
        throttle.sent(0.0)
        throttle.refused(0.0)
    assert throttle.share(29.9) > 0.9
    assert throttle.share(30.0) == 0.0 and not throttle.troubled
    throttle.sent(31.0)
    throttle.refused(31.0)
    throttle.forget()
    assert throttle.share(31.0) == 0.0 and not throttle.troubled


def test_a_region_that_takes_a_tenth_gets_about_twice_of_what_it_takes() -> None:
    """100 a second for 60 s, of which it takes 10."""
    throttle, rng, sent, taken = Throttle(2.0, WINDOW_S), Random(7), 0, 0.0
    for tick in range(6000):
        now, taken = tick / 100, min(3.0, taken + 0.1)
        if throttle.holds(now, rng):
            throttle.held(now)
            continue
        throttle.sent(now)
        sent += tick >= 3000
        if taken >= 1.0:
            taken -= 1.0
        else:
            throttle.refused(now)
    assert 300 <= sent <= 800


def test_another_window_begins_anew() -> None:
    throttle = Throttle(2.0, WINDOW_S)
    throttle.sent(1.0)
    throttle.refused(1.0)
    throttle.use(2.0, WINDOW_S)
    assert throttle.troubled
    throttle.use(2.0, 5.0)
    assert not throttle.troubled


@given(
    st.lists(st.tuples(st.floats(0, 5), st.sampled_from(["sent", "refused", "held"])), max_size=80),
    st.floats(1, 4),
)
def test_as_counted_anew(steps: list[tuple[float, str]], k: float) -> None:
    throttle, now = Throttle(k, WINDOW_S), 100.0
    events: list[tuple[float, str]] = []
    for past, kind in steps:
        now += past
        events.append((now, kind))
        getattr(throttle, kind)(now)
        assert throttle.share(now) == pytest.approx(oracle(events, now, k))


@given(
    st.lists(
        st.tuples(st.floats(-1e9, 1e9), st.sampled_from(["sent", "refused", "held"])), max_size=60
    )
)
def test_a_clock_that_jumps_leaves_a_share(steps: list[tuple[float, str]]) -> None:
    throttle = Throttle(2.0, WINDOW_S)
    for now, kind in steps:
        getattr(throttle, kind)(now)
        assert 0.0 <= throttle.share(now) < 1.0


def test_a_clock_that_was_far_ahead_for_a_moment_is_forgotten() -> None:
    throttle = Throttle(2.0, WINDOW_S)
    for now in (100.0, 1e9, 101.0):
        throttle.sent(now)
        throttle.refused(now)
        for _ in range(20):
            throttle.held(now)
    throttle.sent(102.0)
    assert throttle.share(101.0 + 2 * WINDOW_S) == 0.0
