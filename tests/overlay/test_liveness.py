"""Silence, judged on a clock that we hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.backoff import Backoff
from topology.overlay.liveness import Liveness

KEEP_ALIVE, DEAD = 1.0, 0.75


def fresh(now: float = 0.0) -> Liveness:
    return Liveness(now, KEEP_ALIVE, DEAD, 4.0)


def test_an_idle_path_is_pinged_and_not_judged_dead() -> None:
    path = fresh()
    assert path.judge(0.9, 0.01, None).action == "wait"
    assert path.judge(0.9, 0.01, None).again_s == pytest.approx(1.0)
    assert path.judge(1.0, 0.01, None).action == "ping"


def test_a_ping_without_an_answer_kills_after_the_patience() -> None:
    path = fresh()
    path.asked(1.0)
    assert path.judge(1.74, 0.01, None).action == "wait"
    assert path.judge(1.75, 0.01, None).action == "dead"


def test_an_answer_resets_everything() -> None:
    path = fresh()
    path.asked(1.0)
    path.heard(1.1)
    assert path.judge(2.0, 0.01, None).action == "wait"
    assert path.judge(2.1, 0.01, None).action == "ping"


def test_a_long_path_gets_four_round_trips() -> None:
    path = fresh()
    path.asked(0.0)
    assert path.judge(1.1, 0.3, 0.0).action == "wait"
    assert path.judge(1.2, 0.3, 0.0).action == "dead"


def test_a_slow_engine_is_pinged_and_not_blamed() -> None:
    path = fresh()
    path.asked(0.0)
    path.heard(0.05)  # the request was acknowledged; the engine thinks
    now, pings = 0.05, 0
    while now < 10.0:
        verdict = path.judge(now, 0.01, 0.0)
        assert verdict.action != "dead"
        if verdict.action == "ping":
            pings += 1
            path.asked(now)
            path.heard(now + 0.01)
        now = max(now + 0.01, verdict.again_s if verdict.action == "wait" else now)
    assert 20 < pings < 60


def test_a_process_that_was_stopped_asks_before_it_judges() -> None:
    path = fresh()
    path.asked(0.0)
    path.heard(0.05)
    assert path.judge(5.0, 0.01, 0.0).action == "ping"
    path.asked(5.0)
    assert path.judge(5.3, 0.01, 0.0).action == "wait"
    assert path.judge(5.375, 0.01, 0.0).action == "dead"


@given(
    st.floats(0.001, 0.5), st.floats(0.0, 3.0), st.booleans(),
)  # fmt: skip
def test_a_cut_is_noticed_within_the_bound(rtt: float, cut_at: float, in_flight: bool) -> None:
    """Judged whenever it asks to be: dead within the patience after the cut, or after the ping."""
    path, now = fresh(), 0.0
    patience = path.patience_s(rtt)
    answers: list[float] = []
    awaited = 0.0 if in_flight else None
    if in_flight:
        path.asked(0.0)
        answers.append(rtt)
    for _ in range(200):
        while answers and answers[0] <= now:
            at = answers.pop(0)
            if at <= cut_at:
                path.heard(at)
        verdict = path.judge(now, rtt, awaited)
        if verdict.action == "dead":
            break
        if verdict.action == "ping":
            path.asked(now)
            answers.append(now + rtt)
        assert verdict.again_s > now
        now = min([verdict.again_s, *answers])
    else:
        raise AssertionError("never judged dead")
    last_heard = path.heard_s
    bound = patience if in_flight else KEEP_ALIVE + patience
    assert now - last_heard <= bound + rtt + 1e-6
    assert now - last_heard >= patience - 1e-6


def test_back_off_doubles_up_to_its_limit_and_starts_again() -> None:
    waits = Backoff(0.1, 5.0, lambda: 1.0)
    assert [round(waits.next_s(), 1) for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    waits.reset()
    assert waits.next_s() == pytest.approx(0.1)
    assert Backoff(0.1, 5.0, lambda: 0.0).next_s() == pytest.approx(0.05)
