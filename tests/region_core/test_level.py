"""The level: whom a core admits when too much comes. The real batcher, seeded arrivals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from region_core.scheduling.level import Level, Moment
from tests.region_core.batch_world import LIMITS, Request, World, poisson
from topology.cursor import ALL_ADMITTED, TIERS, URGENCY, USERS
from topology.fair_queue import FLOOR, URGENCIES

PER_S = 9.6  # answers a second of these slots and steps, when all are in use
MIX = (0.03, 0.67, 0.3)  # VIP, standard, batch: at fifteen times, VIPs alone are half of what fits
TARGET_S = 0.25
SETTLING_S = 8.0  # of these the first five are calm


def arrivals(
    rng: Random, load: float, begin: float, end: float, mix: Sequence[float] = MIX
) -> list[Request]:
    found = []
    for at in poisson(rng, load * PER_S, begin, end):
        tier = rng.choices(range(3), mix)[0]
        found.append(
            Request(
                at,
                rng.randint(24, 96),
                urgency=URGENCY[TIERS[tier]],
                tenant=str(rng.randrange(4)),
                deadline_s=10.0,
                cursor=tier * USERS + rng.randrange(USERS),
            )
        )
    return found


def world(follows: bool = False) -> World:
    level = Level(TARGET_S, LIMITS.slots, LIMITS.waiting, 0.0)
    return World(level=level, follows=follows)


@dataclass
class Result:
    world: World
    requests: list[Request]
    goodput: float  # whole answers in time, a second

    def of(self, tier: int) -> list[Request]:
        return [r for r in self.requests if r.cursor // USERS == tier and r.at > SETTLING_S]


def run(w: World, load: float, seed: int, until: float = 30.0) -> Result:
    rng = Random(seed)
    requests = arrivals(rng, 0.5, 0.0, SETTLING_S - 3) + arrivals(rng, load, SETTLING_S - 3, until)
    w.run(requests)
    good = [r for r in requests if r.done_s is not None and SETTLING_S <= r.at + r.done_s < until]
    return Result(w, requests, len(good) / (until - SETTLING_S))


def most(seed: int) -> float:
    """Goodput with all slots always in use, nobody refused and no deadlines."""
    requests = arrivals(Random(seed), 2.0, 0.0, 30.0)
    for request in requests:
        request.deadline_s, request.urgency = 1e9, 3
    w = World(admits=False)
    w.run(requests, until=30.0)
    ended = [r for r in requests if r.done_s and r.at + r.done_s >= SETTLING_S]
    return len(ended) / (30.0 - SETTLING_S)


@pytest.mark.parametrize("follows", [False, True], ids=["all come", "senders follow the level"])
@pytest.mark.parametrize("load", [2.0, 15.0])
def test_in_overload_the_slots_are_in_use_and_vips_are_served(load: float, follows: bool) -> None:
    goodput = capacity = 0.0
    for seed in (1, 2):
        found = run(world(follows), load, seed)
        goodput += found.goodput
        capacity += most(seed)
        vips = found.of(0)
        assert vips and all(r.in_time for r in vips)
        waits = sorted(r.first_s for r in vips if r.first_s is not None)
        assert waits[int(0.95 * len(waits))] < 1.0
        assert found.world.batcher.preemptions > 0
    assert goodput >= (0.93 if follows else 0.95) * capacity


def test_below_capacity_all_are_admitted() -> None:
    found = run(world(), 0.5, seed=1)
    assert all(r.in_time for r in found.requests)
    assert {level for _, level in found.world.levels} == {ALL_ADMITTED}


@pytest.mark.parametrize("follows", [False, True])
def test_when_the_storm_is_over_all_are_admitted_again_within_two_seconds(follows: bool) -> None:
    rng, w = Random(3), world(follows)
    w.run(arrivals(rng, 15.0, 0.0, 12.0) + arrivals(rng, 0.5, 12.0, 20.0))
    at_peak = [level for at, level in w.levels if 6.0 < at < 12.0]
    assert max(at_peak) < ALL_ADMITTED
    after = [level for at, level in w.levels if at >= 14.0]
    assert after and min(after) == ALL_ADMITTED


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "mix", [(0.05, 0.65, 0.3), (0.5, 0.4, 0.1), (0.9, 0.05, 0.05)], ids=["few", "half", "most"]
)
def test_no_tier_starves(mix: tuple[float, ...], seed: int) -> None:
    """Whatever comes, a tier in which there is always somebody who would like to be answered gets
    one of any FLOOR + URGENCIES places, levels and preemption included; and whoever got a place
    comes to its end."""
    w = world()
    requests = arrivals(Random(seed), 15.0, 0.0, 25.0, mix)
    for request in requests:
        request.deadline_s = 1e9
    w.run(requests, until=25.0)
    given = [request.cursor // USERS for at, request in w.places if at > 1.0]
    assert len(given) > 150
    for tier in range(3):
        at = [-1, *(index for index, found in enumerate(given) if found == tier), len(given)]
        longest = max(later - sooner for sooner, later in pairwise(at))
        # One place more where nobody of the tier had come again since it had the last.
        assert longest <= FLOOR + URGENCIES + 1
    begun = {id(request): request for at, request in w.places if at < 15.0}
    assert all(request.in_time for request in begun.values())


def test_vips_are_refused_by_level_only_where_they_alone_are_too_many() -> None:
    shed = []
    for load in (10.0, 30.0):  # of which VIPs: half of what fits, and three times it
        w = world()
        mix = (0.05, 0.65, 0.3) if load < 20 else (0.1, 0.6, 0.3)
        requests = arrivals(Random(5), load, 0.0, 20.0, mix)
        w.run(requests)
        vips = [r for r in requests if r.cursor < USERS and r.at > SETTLING_S]
        shed.append(sum(r.shed for r in vips) / len(vips))
        ended = [r for r in vips if r.done_s is not None]
        assert max(r.first_s for r in ended if r.first_s is not None) < 8.0
    assert shed[0] == 0.0 and 0.4 < shed[1] < 0.9


def test_an_answer_that_goes_on_is_never_refused_by_level_nor_is_one_there_is_room_for() -> None:
    level = Level(TARGET_S, 16, 256, 0.0)
    full, none = (0, 9, 0, 40, 0, 0, 9, 0), (0,) * 8
    for n in range(1, 30):
        for _ in range(100):
            level.came(n * 10)
        level.review(Moment(full, 0, PER_S), n * 0.1)
    assert level.value < 2 * USERS
    place = level.value + 1
    assert not level.admits(place, 3, full, 0)
    assert level.admits(level.value - 1, 3, full, 0)
    assert level.admits(place, 3, none, 0)  # there is room
    assert level.admits(place, 6, (0, 9, 0, 40, 0, 0, 0, 0), 0)  # nobody of its tier waits


@given(
    st.lists(
        st.tuples(
            st.floats(-1e9, 1e9),
            st.lists(st.integers(0, ALL_ADMITTED - 1), max_size=20),
            st.lists(st.integers(0, 10**6), min_size=8, max_size=8),
            st.integers(0, 1024),
            st.floats(0, 1e6),
        ),
        max_size=30,
    ),
    st.integers(1, 1024),
    st.integers(0, 10**6),
)
def test_whatever_it_is_told_and_however_clocks_jump(
    told: list[tuple[float, list[int], list[int], int, float]], slots: int, room: int
) -> None:
    level = Level(TARGET_S, slots, room, 0.0)
    for now, cursors, waiting, unused, places in told:
        for cursor in cursors:
            level.came(cursor)
        level.due(now)
        level.review(Moment(tuple(waiting), unused, places), now)
        assert 1 <= level.value <= ALL_ADMITTED
        assert 1 <= level.retry_s <= 60
        assert level.wait_s(sum(waiting)) >= 0
        assert all(rate >= 0 for rate in level._rates)
        if sum(waiting[:2]) == 0:
            assert level.value >= USERS or level.value > 0


def test_a_clock_that_jumped_ahead_or_back_is_followed() -> None:
    level, now = Level(TARGET_S, 16, 256, 0.0), 0.0
    for jump in (0.0, 1e6, -2e6, 3.0):
        now += jump
        for _ in range(40):
            now += 0.1
            for cursor in range(0, ALL_ADMITTED, 2):
                level.came(cursor)
            level.review(Moment((0, 0, 0, 30, 0, 0, 5, 0), 0, PER_S), now)
        assert level.value == USERS
        for _ in range(20):
            now += 0.1
            level.review(Moment((0,) * 8, 16, PER_S), now)
        assert level.value == ALL_ADMITTED
