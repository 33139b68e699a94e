"""The gate: who may be sent where, as tables of timed steps and by properties."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_node.admission.concurrency import START
from edge_node.admission.gate import LOOK_AGAIN_S, Gate, Hindrance
from edge_node.admission.intake import PROBE_MOST_S, PROBE_S, Intake, Outcome
from topology.cursor import ALL_ADMITTED, TIERS, USERS, Tier
from topology.policy import OverloadPolicy, TierPolicy, TiersPolicy

FIRST = {tier: rank * USERS for rank, tier in enumerate(TIERS)}
LAST = {tier: first + USERS - 1 for tier, first in FIRST.items()}


def fill(gate: Gate, tier: Tier, count: int, now: float = 0.0) -> Intake:
    intake = gate.intake("r")
    for _ in range(count):
        intake.sent(tier, 100.0, now)
    return intake


def ask(gate: Gate, tier: Tier, now: float, *, again: bool = False) -> Hindrance:
    return gate.judge("r", tier, LAST[tier], 100.0, now, again=again)


# The limit


def test_each_tier_has_its_part_of_the_limit_and_vip_goes_beyond_it() -> None:
    gate, limit = Gate(), int(START)
    fill(gate, "batch", int(0.7 * limit))
    assert ask(gate, "batch", 0.0) == "limit"
    assert ask(gate, "standard", 0.0) == ""
    fill(gate, "standard", limit - int(0.7 * limit))
    assert ask(gate, "standard", 0.0) == "limit"
    assert gate.room("r", "standard", 0.0).in_flight == limit
    fill(gate, "vip", 1000)
    assert ask(gate, "vip", 0.0) == ""
    fill(gate, "vip", 4096)
    assert ask(gate, "vip", 0.0) == "limit"


def test_a_tier_with_nothing_there_may_have_one() -> None:
    gate = Gate()
    fill(gate, "vip", 4096)
    assert ask(gate, "standard", 0.0) == "" and ask(gate, "batch", 0.0) == ""
    fill(gate, "standard", 1)
    assert ask(gate, "standard", 0.0) == "limit" and ask(gate, "batch", 0.0) == ""


def test_one_that_was_refused_is_not_followed_by_another_at_once() -> None:
    gate = Gate()
    fill(gate, "vip", 100)
    intake = fill(gate, "batch", 1)
    intake.ended("batch", 100.0, 0.0, "refused", 1.0)
    assert ask(gate, "batch", 1.01) == "limit"
    assert 0 < gate.wait_s("r", "batch", 1.01) <= 2 * PROBE_S
    assert ask(gate, "batch", 1.0 + 2 * PROBE_S) == ""


def test_nobody_is_hindered_where_protection_is_off() -> None:
    gate = Gate()
    gate.use(OverloadPolicy(protect=False))
    intake = fill(gate, "batch", 10_000)
    intake.told("batch", 0, 60.0, 0.0)
    assert ask(gate, "batch", 0.0) == ""
    assert gate.wait_s("r", "batch", 0.0) == 0.0
    gate.use(OverloadPolicy())
    assert ask(gate, "batch", 0.0) == "level"


def test_a_policy_holds_at_once_for_regions_that_are_known() -> None:
    gate = Gate()
    fill(gate, "standard", 5)
    tiers = TiersPolicy(standard=TierPolicy(share=0.5))
    gate.use(OverloadPolicy(concurrency_min=1, concurrency_max=10, tiers=tiers))
    assert gate.room("r", "standard", 0.0).limit == 5
    assert ask(gate, "standard", 0.0) == "limit"


# The level

# Time, what the region says then (None: nothing), and whether the last of these tiers get in.
LEVELS: list[tuple[float, int | None, str]] = [
    (0.0, None, "vip standard batch"),
    (1.0, 2 * USERS, "vip standard"),
    (1.9, None, "vip standard"),
    (2.0, USERS + 3, "vip"),
    (2.5, 0, ""),
    (3.4, None, ""),
    (3.5, None, ""),  # for a second it holds; then it rises by half a tier, four times a second
    (3.75, None, "vip"),
    (4.0, None, "vip"),
    (4.25, None, "vip standard"),
    (4.75, None, "vip standard batch"),
    (9.0, None, "vip standard batch"),
    (9.1, USERS, "vip"),
    (5.0, None, "vip"),  # the clock has gone back
    (5.9, None, "vip"),
    (6.3, None, "vip standard"),
    (6.9, None, "vip standard batch"),
]


def test_a_level_holds_for_a_second_and_then_gives_way() -> None:
    gate = Gate()
    for tier in TIERS:
        fill(gate, tier, 2)  # no probes
    for now, level, admitted in LEVELS:
        gate.intake("r").told("vip", level, None, now)
        found = " ".join(tier for tier in TIERS if not ask(gate, tier, now))
        assert found == admitted, now


def test_within_a_tier_the_cursor_decides() -> None:
    gate = Gate()
    intake = fill(gate, "standard", 2)
    intake.told("standard", USERS + 40, None, 0.0)
    assert gate.judge("r", "standard", USERS + 39, 1.0, 0.1) == ""
    assert gate.judge("r", "standard", USERS + 40, 1.0, 0.1) == "level"


def test_a_tier_that_is_kept_out_sends_one_now_and_then_and_ever_more_rarely() -> None:
    gate, sent = Gate(), list[float]()
    intake = gate.intake("r")
    for tick in range(2000):
        now = tick / 100
        intake.told("vip", 0, None, now)
        if not ask(gate, "batch", now):
            sent.append(now)
            intake.sent("batch", 100.0, now)
            if now > 14:
                intake.accepted("batch", 0, 0.0, 1.0, now)
            intake.ended("batch", 100.0, 0.0, "ok" if now > 14 else "refused", now)
    gaps = [round(after - before, 1) for before, after in pairwise(sent)]
    assert gaps[:5] == [1.0, 2.0, PROBE_MOST_S, PROBE_MOST_S, PROBE_MOST_S]
    assert set(gaps[5:]) == {PROBE_S}  # one was taken


# The throttle


def test_what_a_region_refuses_is_held_back_and_let_in_once_it_takes_all_again() -> None:
    gate = Gate(Random(3))
    intake = fill(gate, "standard", 101)
    for _ in range(95):
        intake.ended("standard", 100.0, 0.0, "refused", 0.5)
    found = [ask(gate, "standard", 0.6) for _ in range(200)]
    assert found.count("throttle") > 150
    assert gate.room("r", "standard", 0.6).throttled > 0.85
    assert gate.room("r", "batch", 0.6).throttled == 0.0
    intake.accepted("standard", ALL_ADMITTED, 0.0, 0.5, 1.0)
    assert gate.room("r", "standard", 1.1).throttled > 0.85  # one was refused only now
    intake.accepted("standard", FIRST["batch"], 0.0, 0.5, 1.6)
    assert gate.room("r", "standard", 1.7).throttled == 0.0
    assert ask(gate, "standard", 1.7) == ""


def test_whoever_waits_does_not_draw_until_it_wins() -> None:
    gate = Gate(Random(3))
    intake = fill(gate, "standard", 40)
    for _ in range(30):
        intake.ended("standard", 100.0, 0.0, "refused", 0.0)
    intake._turned(10.0)  # the limit's window is over: what it lost is free again
    throttled = gate.room("r", "standard", 10.0).throttled
    won = 0
    for tick in range(1000):  # in the same millisecond or so
        won += not ask(gate, "standard", 10.0 + tick / 1e6, again=True)
    assert won <= 1
    assert gate.room("r", "standard", 10.1).throttled == throttled  # it asked once, long ago


# The pace


def drained(gate: Gate, per_s: float) -> Intake:
    """10 s in which so many requests of 100 tokens ended, and 8 that stay."""
    intake = fill(gate, "standard", 8)
    for number in range(int(10 * per_s)):
        now = number / per_s
        intake.sent("standard", 100.0, now)
        intake.ended("standard", 100.0, 100.0, "ok", now)
    return intake


def test_into_a_full_region_goes_what_drains_from_it() -> None:
    gate = Gate()
    intake = drained(gate, 20.0)
    sent = 0
    for tick in range(1000):
        now = 10.0 + tick / 1000
        intake.told("standard", ALL_ADMITTED, 1.0, now)
        if not ask(gate, "standard", now):
            intake.sent("standard", 100.0, now)
            intake.ended("standard", 100.0, 100.0, "failed", now)
            sent += 1
    assert 20 <= sent <= 60  # 25 a second and a burst of half of that; what ends is drained, too


def test_an_idle_region_is_not_paced() -> None:
    gate = Gate()
    intake = drained(gate, 20.0)
    for _ in range(40):
        assert ask(gate, "standard", 10.0) == ""
        intake.sent("standard", 1e6, 10.0)


def test_a_pace_ends_when_nothing_is_heard() -> None:
    gate = Gate()
    intake = drained(gate, 20.0)
    intake.told("standard", ALL_ADMITTED, 1.0, 10.0)
    intake.sent("standard", 1e6, 10.0)
    assert ask(gate, "standard", 10.1) == "pace"
    assert 0 < gate.wait_s("r", "standard", 10.1) < 2
    assert ask(gate, "vip", 10.1) == ""
    assert ask(gate, "standard", 11.1) == ""


# Waits, and whoever waits


def test_a_wait_is_as_long_as_it_takes_to_drain() -> None:
    gate = Gate()
    intake = drained(gate, 20.0)
    assert gate.wait_s("r", "standard", 10.0) == 0.0
    assert gate.drain_per_s("r", 10.0) == pytest.approx(20, rel=0.1)
    fill(gate, "standard", 60, 10.0)  # five too many by its limit, twelve by its part
    assert gate.wait_s("r", "standard", 10.0) == pytest.approx(12 / 20, rel=0.25)
    for _ in range(12):
        intake.ended("standard", 100.0, 100.0, "ok", 10.0)
    assert gate.wait_s("r", "standard", 10.0) == 0.0 and ask(gate, "standard", 10.0) == ""


def test_of_a_region_that_is_not_known_nothing_is_waited_for() -> None:
    gate = Gate()
    assert gate.wait_s("r", "batch", 0.0) == gate.drain_per_s("r", 0.0) == 0.0


def test_room_is_told_of_to_those_who_were_hindered_and_to_nobody_else() -> None:
    gate, calls = Gate(), []
    gate.on_room = lambda: calls.append(True)
    intake = fill(gate, "standard", int(START))
    intake.ended("standard", 100.0, 100.0, "ok", 0.0)
    assert not calls
    intake.sent("standard", 100.0, 0.0)
    assert ask(gate, "standard", 0.0) == "limit"
    for _ in range(5):
        intake.ended("standard", 100.0, 100.0, "ok", 0.0)
    assert len(calls) == 1
    intake.told("standard", USERS, None, 0.0)
    assert ask(gate, "standard", 0.0) == "level"
    intake.told("standard", USERS - 1, None, 0.0)
    assert len(calls) == 1
    intake.told("standard", ALL_ADMITTED, None, 0.0)
    assert len(calls) == 2


# Regions come and go


def test_regions_that_are_gone_are_forgotten_and_what_runs_there_ends_in_peace() -> None:
    gate = Gate()
    old = fill(gate, "standard", 3)
    gate.keep({"other"})
    assert not list(gate.samples(0.0))
    assert gate.room("r", "standard", 0.0).in_flight == 0
    for _ in range(3):
        old.ended("standard", 100.0, 100.0, "ok", 0.0)
    assert old.in_flight == gate.room("r", "standard", 0.0).in_flight == 0


def test_what_people_see() -> None:
    gate = Gate()
    intake = fill(gate, "standard", 64)
    ask(gate, "standard", 0.0)
    ask(gate, "standard", 0.0, again=True)
    intake.told("standard", 300, 0.5, 0.0)
    found = {
        (sample.name.removeprefix("tradewind_edge_gate_"), *(sample.labels or {}).values()): (
            sample.value
        )
        for sample in gate.samples(0.0)
    }
    assert found["in_flight", "r", "standard"] == 64
    assert found["level", "r"] == 300 and found["queue_seconds", "r"] == 0.5
    assert found["hindered_total", "r", "standard", "limit"] == 1
    assert found["hindered_total", "r", "standard", "pace"] == 0
    room = gate.room("r", "standard", 0.0)
    assert (room.own, room.level, room.queue_ms) == (64, 300, 500.0)


@pytest.mark.parametrize("queue_s", [float("nan"), float("inf"), 1e12, 60.0])
def test_whatever_a_region_says_of_its_queue_is_forgotten_soon(queue_s: float) -> None:
    gate = Gate()
    intake = fill(gate, "standard", 10)
    intake.told("standard", None, queue_s, 0.0)
    assert gate.room("r", "standard", 0.5).queue_ms == 60_000
    assert gate.wait_s("r", "standard", 0.5) <= 60.0
    assert gate.room("r", "standard", 1.5).queue_ms == 0.0
    intake.told("standard", None, 0.0, 2.0)
    assert gate.room("r", "standard", 2.0).queue_ms == 0.0
    assert gate.room("r", "standard", 2.0).limit >= 4


# Properties

TIER = st.sampled_from(TIERS)
OUTCOME: st.SearchStrategy[Outcome] = st.sampled_from(
    ["ok", "refused", "failed", "faulty", "cancelled"]
)
STEP = st.one_of(
    st.tuples(st.just("ask"), TIER, st.integers(0, USERS - 1)),
    st.tuples(st.just("end"), OUTCOME, st.integers(0, 1 << 20)),
    st.tuples(st.just("told"), TIER, st.integers(0, ALL_ADMITTED)),
    st.tuples(st.just("took"), TIER, st.integers(0, 5_000)),
)
TIMES = st.one_of(st.floats(0, 0.3), st.sampled_from([-1e6, -0.5, 30.0, 1e9]))


class Count:
    """What is under way, counted by others."""

    def __init__(self) -> None:
        self.gate = Gate(Random(1))
        self.gate.use(OverloadPolicy(concurrency_min=2, concurrency_max=40))
        self.under_way: list[tuple[Tier, float]] = []

    def step(self, kind: str, what: str, number: int, now: float) -> None:
        intake = self.gate.intake("r")
        if kind == "ask":
            tier: Tier = what  # type: ignore[assignment]
            self.ask(tier, number, now)
        elif kind == "end" and self.under_way:
            tier, cost = self.under_way.pop(number % len(self.under_way))
            used = 0.0 if what == "refused" else number % 3 * cost
            intake.ended(tier, cost, used, what, now)  # type: ignore[arg-type]
        elif kind == "told":
            intake.told(what, number, None, now)  # type: ignore[arg-type]
        elif kind == "took":
            intake.accepted(what, ALL_ADMITTED, number / 1000, number / 2500, now)  # type: ignore[arg-type]

    def ask(self, tier: Tier, place: int, now: float) -> None:
        gate, cost = self.gate, 50.0 + place
        room = gate.room("r", tier, now)
        hindrance = gate.judge("r", tier, FIRST[tier] + place, cost, now)
        if hindrance:
            assert gate.wait_s("r", tier, now) <= 60.0
            return
        if room.own:
            assert room.own < room.limit or room.limit == 1
            whole = 40 if tier == "vip" else max(40, gate.room("r", "vip", now).limit)
            assert room.in_flight < whole
        gate.intake("r").sent(tier, cost, now)
        self.under_way.append((tier, cost))

    def check(self, now: float) -> None:
        for tier in TIERS:
            room = self.gate.room("r", tier, now)
            assert room.own == sum(kind == tier for kind, _ in self.under_way)
            assert room.in_flight == len(self.under_way)
            assert 0 <= room.level <= ALL_ADMITTED
            assert 0.0 <= room.throttled < 1.0
            assert room.queue_ms >= 0 and room.drain_per_s >= 0
            assert 1 <= room.limit <= 40
            assert self.gate.wait_s("r", tier, now) >= 0.0


@given(st.lists(st.tuples(TIMES, STEP), max_size=100))
def test_counts_are_exact_and_figures_sane_whatever_the_clock_does(
    steps: list[tuple[float, tuple[str, str, int]]],
) -> None:
    count, now = Count(), 100.0
    for past, (kind, what, number) in steps:
        now += past
        count.step(kind, what, number, now)
        count.check(now)
        others = sum(tier != "vip" for tier, _ in count.under_way)
        assert others <= 40 + 2  # the limit, and one of each tier that it binds


@given(st.lists(st.tuples(st.floats(0, 0.3), STEP), max_size=60))
def test_with_nothing_in_the_way_everybody_is_let_in_again_soon(
    steps: list[tuple[float, tuple[str, str, int]]],
) -> None:
    """Work conservation: whatever has happened, once all is over and the region takes everybody,
    nobody is kept out: throttles after the first of their tier that is taken."""
    count, now = Count(), 100.0
    for past, (kind, what, number) in steps:
        now += past
        count.step(kind, what, number, now)
    for tier, cost in count.under_way:
        count.gate.intake("r").ended(tier, cost, cost, "ok", now)
    count.under_way.clear()
    now += 2.0
    for tier in TIERS:
        count.gate.intake("r").accepted(tier, ALL_ADMITTED, 0.0, 0.0, now)
    for tier in TIERS:
        assert count.gate.judge("r", tier, LAST[tier], 1.0, now) == ""
        assert count.gate.wait_s("r", tier, now) == 0.0


@given(st.integers(1, 63), TIER)
def test_with_room_nobody_is_refused(there: int, tier: Tier) -> None:
    gate = Gate()
    fill(gate, "standard", there)
    own = there if tier == "standard" else 0
    assert (ask(gate, tier, 1.0) == "") == (own < int(0.9 * START))


def test_whoever_waits_looks_again_before_long() -> None:
    assert LOOK_AGAIN_S <= PROBE_S
