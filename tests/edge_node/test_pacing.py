"""How fast a region drains, and the leaky bucket that goes by it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_node.admission.pacing import BURST_S, DEBT_MOST_S, HEADROOM, Drain, Pace


@pytest.mark.parametrize("seconds", [1.0, 3.0, 30.0])
@pytest.mark.parametrize("per_s", [2.0, 50.0, 1000.0])
def test_a_steady_drain_is_known_from_the_first_second(per_s: float, seconds: float) -> None:
    drain = Drain()
    for number in range(int(per_s * seconds)):
        drain.add(30.0, 100.0 + number / per_s)
    now = 100.0 + seconds
    assert drain.per_s(now) == pytest.approx(per_s, rel=0.35)
    assert drain.tokens_per_s(now) == pytest.approx(30 * per_s, rel=0.35)


def test_what_stops_draining_is_seen_to() -> None:
    drain = Drain()
    assert drain.per_s(5.0) == drain.tokens_per_s(5.0) == 0.0
    for number in range(100):
        drain.add(1.0, number / 10)
    assert drain.per_s(10.0) > 8
    assert drain.per_s(20.0) < 0.5
    assert drain.per_s(1e9) == 0.0


def test_after_a_rest_it_is_measured_anew() -> None:
    drain = Drain()
    for number in range(100):
        drain.add(1.0, number / 100)
    for number in range(10):
        drain.add(1.0, 1000.0 + number / 10)
    assert drain.per_s(1001.0) == pytest.approx(10, rel=0.3)  # not thinned by the rest


def test_it_sends_no_faster_than_it_drains() -> None:
    pace, rate, sent, now = Pace(), 1000.0, 0, 50.0
    while now < 60.0:
        if not pace.wait_s(now):
            pace.spend(100.0, rate, now)
            sent += 100
        now += 0.001
    assert sent == pytest.approx(rate * HEADROOM * (10 + BURST_S), rel=0.03)


def test_nothing_known_keeps_nobody() -> None:
    pace = Pace()
    for _ in range(1000):
        pace.spend(1e6, 0.0, 3.0)
        assert pace.wait_s(3.0) == 0.0


def test_an_estimate_that_was_wrong_is_made_good() -> None:
    pace = Pace()
    pace.spend(1000.0, 1000.0, 0.0)  # 0.8 s
    assert pace.wait_s(0.0) == pytest.approx(0.3)
    pace.settle(-900.0, 1000.0, 0.0)
    assert pace.wait_s(0.0) == 0.0
    pace.settle(900.0, 1000.0, 0.0)
    assert pace.wait_s(0.0) == pytest.approx(0.3)


def test_fewer_than_thought_saves_nothing_up() -> None:
    pace = Pace()
    pace.settle(-1e9, 1.0, 10.0)
    pace.spend(1.0, 1.0, 10.0)
    pace.settle(-1e9, 1.0, 10.1)
    pace.spend(1.0, 1.0, 10.2)
    assert pace.wait_s(10.2) == pytest.approx(1 / HEADROOM - BURST_S)


STEP = st.tuples(
    st.sampled_from(["spend", "settle", "add"]),
    st.floats(-1e9, 1e9),
    st.floats(0, 1e9),
    st.floats(0, 1e6),
)


@given(st.lists(STEP, max_size=60))
def test_no_clock_and_no_cost_keeps_anybody_longer_than_the_bound(
    steps: list[tuple[str, float, float, float]],
) -> None:
    pace, drain = Pace(), Drain()
    for kind, now, tokens, rate in steps:
        if kind == "spend":
            pace.spend(tokens, rate, now)
        elif kind == "settle":
            pace.settle(tokens - 5e8, rate, now)
        else:
            drain.add(tokens, now)
        assert 0.0 <= pace.wait_s(now) <= DEBT_MOST_S - BURST_S
        assert drain.per_s(now) >= 0.0 and drain.tokens_per_s(now) >= 0.0
