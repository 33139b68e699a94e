"""The level: whom a core admits when too much comes. The real batcher, seeded arrivals."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest

from region_core.scheduling.level import Level
from tests.region_core.batch_world import LIMITS, Request, World, poisson
from topology.cursor import ALL_ADMITTED, TIERS, URGENCY, USERS

PER_S = 9.6  # answers a second of these slots and steps, when all are in use
MIX = (0.03, 0.67, 0.3)  # VIP, standard, batch: at fifteen times, VIPs alone are half of what fits
TARGET_S = 0.25
SETTLING_S = 6.0


def arrivals(rng: Random, load: float, begin: float, end: float) -> list[Request]:
    found = []
    for at in poisson(rng, load * PER_S, begin, end):
        tier = rng.choices(range(3), MIX)[0]
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
    requests = arrivals(Random(seed), load, 0.0, until)
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
