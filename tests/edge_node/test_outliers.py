"""Who keeps failing is left alone, tried, and taken back slowly: tables of timed steps, and what
holds whatever happens."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_node.forward.outliers import (
    BELIEVE_S,
    FORGIVE_S,
    JITTER,
    PROBE_S,
    STALL_HOLD_MAX_S,
    STALL_HOLD_S,
    Outliers,
    State,
)
from topology.policy import OutlierPolicy

NAME = "dubai"
REGIONS = ("dubai", "frankfurt", "singapore")
ENGINE = "it answered 500, engine"


class Middle(Random):
    """Draws in the middle: no hold is a surprise."""

    def random(self) -> float:
        return 0.5


def outliers(names: tuple[str, ...] = REGIONS, **policy: float) -> Outliers:
    found = Outliers(Middle(), OutlierPolicy(**policy))  # type: ignore[arg-type]
    found.keep(names)
    return found


# do, at, and what is then true: state, why (whether there is one), part. Time is in seconds.
Step = tuple[str, float, State | None, bool, float]
WELL, HELD, TRIED, SLOW = State.WELL, State.HELD, State.TRIED, State.SLOW
FIVE: list[Step] = [("fail", 0.0, WELL, False, 1.0)] * 4 + [("fail", 0.0, HELD, True, 1.0)]
TABLES: dict[str, list[Step]] = {
    "five in a row, then 27 s, a probe, and slowly back": [
        *FIVE,
        ("look", 26.9, HELD, True, 1.0),
        ("look", 27.1, TRIED, False, 1.0),
        ("ask", 28.0, TRIED, True, 1.0),
        ("ask", 28.5, TRIED, True, 1.0),
        ("serve", 29.0, SLOW, False, 0.1),
        ("look", 32.1, SLOW, False, 0.4),
        ("look", 38.9, SLOW, False, 1.0),
        ("look", 39.0, WELL, False, 1.0),
    ],
    "four in a row are not five": [
        *FIVE[:4],
        ("serve", 1.0, WELL, False, 1.0),
        ("fail", 1.0, WELL, False, 1.0),
    ],
    "errors far apart are not in a row": [
        *(("fail", 11.0 * at, WELL, False, 1.0) for at in range(20)),
    ],
    "a probe that fails holds it for twice as long": [
        *FIVE,
        ("ask", 28.0, TRIED, True, 1.0),
        ("fail", 28.1, HELD, True, 1.0),
        ("look", 28.1 + 53.9, HELD, True, 1.0),
        ("look", 28.1 + 54.1, TRIED, False, 1.0),
    ],
    "what was sent before the hold says nothing after it": [
        *FIVE,
        ("serve", 20.0, HELD, True, 1.0),
        ("fail", 28.0, TRIED, False, 1.0),
        ("serve", 28.0, TRIED, False, 1.0),
    ],
    "a probe without an answer gives way to another": [
        *FIVE,
        ("ask", 28.0, TRIED, True, 1.0),
        ("look", 28.0 + PROBE_S - 0.1, TRIED, True, 1.0),
        ("look", 28.0 + PROBE_S, TRIED, False, 1.0),
        ("ask", 40.0, TRIED, True, 1.0),
        ("serve", 42.0, SLOW, False, 0.1),
    ],
    "while it returns, five in a row hold it again": [
        *FIVE,
        ("ask", 28.0, TRIED, True, 1.0),
        ("serve", 29.0, SLOW, False, 0.1),
        *([("fail", 30.0, SLOW, False, 0.1)] * 4),
        ("fail", 30.0, HELD, True, 1.0),
        ("look", 30.0 + 53.9, HELD, True, 1.0),
    ],
    "failures that come together count once": [
        *FIVE,
        *([("fail", 0.1, HELD, True, 1.0)] * 50),
        ("look", 27.1, TRIED, False, 1.0),
    ],
    "a stall holds at once, for three seconds": [
        ("stall", 0.0, HELD, True, 1.0),
        ("stall", 0.1, HELD, True, 1.0),
        ("look", STALL_HOLD_S - 0.1, HELD, True, 1.0),
        ("look", STALL_HOLD_S, TRIED, False, 1.0),
    ],
    "an answer ends the hold of a stall, but not one that was on its way": [
        ("stall", 0.0, HELD, True, 1.0),
        ("serve", BELIEVE_S / 2, HELD, True, 1.0),
        ("serve", BELIEVE_S, SLOW, False, 0.1),
    ],
    "time that goes back stands still": [
        *FIVE,
        ("look", -1e9, HELD, True, 1.0),
        ("look", -1e9 + 26.9, HELD, True, 1.0),
        ("look", -1e9 + 27.1, TRIED, False, 1.0),
    ],
    "time that leaps ends a hold": [*FIVE, ("look", 1e12, TRIED, False, 1.0)],
}


def do(found: Outliers, what: str, at: float, name: str = NAME) -> None:
    if what == "fail":
        found.failed(name, ENGINE, at)
    elif what == "stall":
        found.stalled(name, "it stood still", at)
    elif what == "serve":
        found.served(name, at)
    elif what == "ask":
        found.asked(name, at)


@pytest.mark.parametrize("table", TABLES, ids=lambda name: name.replace(" ", "-"))
def test_steps(table: str) -> None:
    found = outliers()
    for number, (what, at, state, left_alone, part) in enumerate(TABLES[table]):
        do(found, what, at)
        assert found.state(NAME, at) is state, (number, what, at)
        assert bool(found.why(NAME, at)) is left_alone, (number, what, at)
        assert found.part(NAME, at) == part, (number, what, at)
        assert found.why("frankfurt", at) == ""
        assert found.part("frankfurt", at) == 1.0


def test_who_is_left_alone_is_said_why() -> None:
    found = outliers()
    assert [found.failed(NAME, ENGINE, 0.0) for _ in range(5)] == [False] * 4 + [True]
    assert found.why(NAME, 0.0) == f"5 requests failed in a row, the last: {ENGINE}"
    found.asked(NAME, 30.0)
    found.failed(NAME, ENGINE, 30.0)
    assert found.why(NAME, 30.0) == f"tried again: {ENGINE}"
    found.keep(REGIONS[1:])
    assert found.why(NAME, 30.0) == ""
    assert not found
    assert not found.failed("atlantis", ENGINE, 30.0)
    assert len(found) == 0


def test_each_further_hold_is_longer_up_to_a_limit() -> None:
    found, now, held = outliers(consecutive_errors=1), 0.0, []
    for _ in range(13):
        found.asked(NAME, now)
        assert found.failed(NAME, ENGINE, now)
        began = now
        while found.state(NAME, now) is HELD:
            now += 0.5
        held.append(now - began)
    assert held[:3] == [27.0, 54.0, 81.0]
    assert held[-3:] == [270.0] * 3


def test_stalls_double_up_to_a_limit() -> None:
    found, now, held = outliers(), 0.0, []
    for _ in range(8):
        assert found.stalled(NAME, "no tokens", now)
        began = now
        while found.state(NAME, now) is HELD:
            now += 0.5
        held.append(now - began)
    assert held == [3.0, 6.0, 12.0, 24.0, 48.0, 60.0, 60.0, 60.0]
    assert max(held) == STALL_HOLD_MAX_S


def test_time_without_a_hold_forgives_by_halves() -> None:
    found, now = outliers(consecutive_errors=1), 0.0
    for hold_s in (27.0, 54.0, 81.0, 108.0):
        found.asked(NAME, now)
        assert found.failed(NAME, ENGINE, now)
        now += hold_s + 0.1
    found.asked(NAME, now)
    found.served(NAME, now)
    now += 110.0
    assert found.failed(NAME, ENGINE, now)  # four became two: this is the third
    assert found.state(NAME, now + 80.9) is HELD
    assert found.state(NAME, now + 81.1) is TRIED


def test_one_that_serves_for_long_is_forgotten() -> None:
    found = outliers()
    found.stalled(NAME, "no tokens", 0.0)
    found.served(NAME, 2.0)
    assert found
    found.served(NAME, 2.0 + 2 * FORGIVE_S)
    assert not found
    found.failed(NAME, ENGINE, 100.0)
    assert len(found) == 1
    found.served(NAME, 100.0)
    assert not found


def test_holds_of_many_edges_do_not_end_together() -> None:
    held = set()
    for seed in range(20):
        found = Outliers(Random(seed))
        found.keep(REGIONS)
        for _ in range(5):
            found.failed(NAME, ENGINE, 0.0)
        now = 0.0
        while found.state(NAME, now) is HELD:
            now += 0.1
        held.add(round(now, 1))
        assert 30.0 * (1 - JITTER) <= now <= 30.2
    assert len(held) > 10


@pytest.mark.parametrize(
    ("names", "share", "most"),
    [(1, 0.5, 0), (2, 0.5, 1), (3, 0.5, 1), (4, 0.5, 2), (5, 1.0, 5), (5, 0.0, 0)],
)
def test_panic_floor(names: int, share: float, most: int) -> None:
    found = outliers(tuple(f"r{n}" for n in range(names)), panic_share=share)
    for number in range(names):
        do(found, "stall", 0.0, f"r{number}")
        bad = number + 1
        assert len(found.left_alone(0.0)) == (bad if bad <= most else 0)


OPS = st.tuples(
    st.sampled_from(["fail", "fail", "fail", "serve", "ask", "stall", "look"]),
    st.sampled_from(["a", "b", "c", "d"]),
    st.sampled_from([0.0, 0.0, 0.01, 0.5, 3.0, 10.5, 31.0, 400.0, -5.0, -1e6, 1e6]),
)
POLICIES = st.builds(
    OutlierPolicy,
    consecutive_errors=st.integers(1, 5),
    interval_s=st.floats(0.1, 100.0),
    hold_s=st.floats(0.1, 100.0),
    hold_max_s=st.floats(0.1, 1000.0),
    panic_share=st.floats(0.0, 1.0),
    slow_start_s=st.floats(0.0, 100.0),
)


@settings(max_examples=150, deadline=None)
@given(POLICIES, st.integers(1, 5), st.lists(OPS, max_size=60), st.randoms(use_true_random=False))
def test_whatever_happens(
    policy: OutlierPolicy, count: int, ops: list[tuple[str, str, float]], rng: Random
) -> None:
    names = ("a", "b", "c", "d", "e")[:count]  # "e" is healthy
    found = Outliers(rng, policy)
    found.keep(names)
    now = 1000.0
    failed: set[str] = set()
    for what, name, step in ops:
        now += step
        do(found, what, now, name)
        if what in ("fail", "stall"):
            failed.add(name)
        alone = found.left_alone(now)
        assert len(alone) <= policy.panic_share * len(names)
        assert set(alone) <= failed & set(names)  # a healthy one never is
        assert all(alone.values())
        assert len(found) <= len(names)
        for each in names:
            assert 0.0 < found.part(each, now) <= 1.0
            assert found.why(each, now) == alone.get(each, "")
        # One that heals is fully back: the longest hold, one probe, the slow start.
        _heal_all(found, names, now, policy)


def _heal_all(found: Outliers, names: tuple[str, ...], now: float, policy: OutlierPolicy) -> None:
    """Were it to heal now; what is asked here is not what is asked later."""
    copy = Outliers(Random(1), policy)
    copy.__dict__.update({k: v for k, v in found.__dict__.items() if k != "_troubled"})
    copy._troubled = {name: _copied(m) for name, m in found._troubled.items()}
    now += policy.hold_max_s + PROBE_S
    for name in names:
        copy.asked(name, now)
        copy.served(name, now)
    now += policy.slow_start_s + 1e-3
    assert copy.left_alone(now) == {}
    assert all(copy.part(name, now) == 1.0 for name in names)


def _copied(member: object) -> object:
    return member.__copy__()  # type: ignore[attr-defined]
