"""Edges' gates in front of one region, in virtual time: a closed loop, with nothing real in it.

The region has slots and a queue that lets VIP go first, and says with each ACCEPT how long one
waits, as the real one does. Each edge sends what its gate lets through and keeps a few others
waiting for a second, in order of tier.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count
from random import Random

from edge_node.admission.gate import Gate
from region_core.scheduling.level import REVIEW_S, Level, Moment
from topology.cursor import ALL_ADMITTED, TIERS, URGENCY, USERS, Tier, tier_at
from topology.policy import OverloadPolicy

TICK_S = 0.02
WAIT_S = 1.0
WAITING_MOST = 500


class Job:
    __slots__ = ("answer_s", "cursor", "edge", "since", "tier")

    def __init__(self, edge: Edge, cursor: int, answer_s: float, since: float) -> None:
        self.edge, self.cursor, self.answer_s, self.since = edge, cursor, answer_s, since
        self.tier = tier_at(cursor)


class World:
    """Steps through what happens, in order of time."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.now = 0.0
        self._coming: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._coming, (when, next(self._numbers), what))

    def run(self, until: float) -> None:
        while self._coming and self._coming[0][0] <= until:
            self.now, _, what = heapq.heappop(self._coming)
            what()
        self.now = until


class Region:
    """`answer_s`: how long one takes in its slot, in the mean."""

    def __init__(
        self, world: World, slots: int, answer_s: float, waiting_most: int = 1 << 30
    ) -> None:
        self.world, self.slots, self.answer_s = world, slots, answer_s
        self.waiting_most = waiting_most
        self.waiting: dict[Tier, deque[Job]] = {tier: deque() for tier in TIERS}
        self.running = 0
        self.level = ALL_ADMITTED
        self.waits: list[tuple[float, Tier, float]] = []  # when a slot was given, after how long
        self.ended: list[tuple[float, Job]] = []
        self.busy_s = 0.0

    @property
    def capacity_per_s(self) -> float:
        return self.slots / self.answer_s

    def arrive(self, job: Job) -> None:
        world, edge = self.world, job.edge
        ahead = sum(len(self.waiting[tier]) for tier in TIERS[: TIERS.index(job.tier) + 1])
        queue_s = ahead / self.capacity_per_s if self.running >= self.slots else 0.0
        if not self._takes(job, ahead):
            world.at(world.now + edge.rtt_s / 2, lambda: edge.refused(job, queue_s))
            return
        self.waiting[job.tier].append(job)
        level, load = self.level, (self.running + sum(map(len, self.waiting.values()))) / self.slots
        world.at(world.now + edge.rtt_s / 2, lambda: edge.accepted(job, level, queue_s, load))
        self._start()

    def _takes(self, job: Job, ahead: int) -> bool:
        return ahead < self.waiting_most

    def _start(self) -> None:
        world = self.world
        for tier in TIERS:
            while self.running < self.slots and self.waiting[tier]:
                job = self.waiting[tier].popleft()
                self.running += 1
                self.waits.append((world.now, tier, world.now - job.since))
                world.at(world.now + job.answer_s, lambda job=job: self._end(job))  # type: ignore[misc]

    def _end(self, job: Job) -> None:
        self.running -= 1
        self.ended.append((self.world.now, job))
        edge, level = job.edge, self.level
        self.world.at(self.world.now + edge.rtt_s / 2, lambda: edge.whole(job, level))
        self._start()


class Leveller(Region):
    """One that sheds by level, as cores do."""

    def __init__(self, world: World, slots: int, answer_s: float) -> None:
        super().__init__(world, slots, answer_s)
        self._level = Level(0.25, slots, 1000, world.now)
        self._review()

    def _takes(self, job: Job, ahead: int) -> bool:
        self._level.came(job.cursor)
        unused = self.slots - self.running
        return self._level.admits(job.cursor, URGENCY[job.tier], self._waiting(), unused)

    def _waiting(self) -> tuple[int, ...]:
        waiting = [0] * 8
        for tier, line in self.waiting.items():
            waiting[URGENCY[tier]] = len(line)
        return tuple(waiting)

    def _review(self) -> None:
        moment = Moment(self._waiting(), self.slots - self.running, self.capacity_per_s)
        self._level.review(moment, self.world.now)
        self.level = self._level.value
        self.world.at(self.world.now + REVIEW_S, self._review)


class Edge:
    """`per_s`: requests that come, by tier; may be changed on the way."""

    def __init__(
        self, world: World, region: Region, rtt_s: float, policy: OverloadPolicy | None = None
    ) -> None:
        self.world, self.region, self.rtt_s = world, region, rtt_s
        self.gate = Gate(world.rng)
        if policy is not None:
            self.gate.use(policy)
        self.gate.on_room = self._soon
        self.waiting: dict[Tier, deque[Job]] = {tier: deque() for tier in TIERS}
        self.sent = self.turned_away = self.refusals = 0
        self.offered: dict[Tier, int] = dict.fromkeys(TIERS, 0)
        self.limits: list[tuple[float, float]] = []
        self._pumping = False
        world.at(world.now, self._tick)

    def offer(self, tier: Tier, per_s: float, since: float, until: float) -> None:
        """Requests come so often, at random."""
        when = since
        while (when := when + self.world.rng.expovariate(per_s)) < until:
            self.world.at(when, lambda: self._come(tier))

    def _come(self, tier: Tier) -> None:
        rng, now = self.world.rng, self.world.now
        self.offered[tier] += 1
        answer_s = rng.uniform(0.2, 1.8) * self.region.answer_s
        job = Job(self, TIERS.index(tier) * USERS + rng.randrange(USERS), answer_s, now)
        if self._send(job, again=False):
            return
        if len(self.waiting[tier]) < WAITING_MOST:
            self.waiting[tier].append(job)
        else:
            self.turned_away += 1

    def _send(self, job: Job, *, again: bool) -> bool:
        now, world = self.world.now, self.world
        if self.gate.judge("r", job.tier, job.cursor, 100.0, now, again=again):
            return False
        self.gate.intake("r").sent(job.tier, 100.0, now)
        self.sent += 1
        job.since = now + self.rtt_s / 2
        world.at(now + self.rtt_s / 2, lambda: self.region.arrive(job))
        return True

    def accepted(self, job: Job, level: int, queue_s: float, load: float) -> None:
        self.gate.intake("r").accepted(job.tier, level, queue_s, load, self.world.now)

    def refused(self, job: Job, queue_s: float) -> None:
        self.refusals += 1
        self.gate.intake("r").told(job.tier, self.region.level, queue_s, self.world.now)
        self.gate.intake("r").ended(job.tier, 100.0, 0.0, "refused", self.world.now)

    def whole(self, job: Job, level: int) -> None:
        self.gate.intake("r").told(job.tier, level, None, self.world.now)
        self.gate.intake("r").ended(job.tier, 100.0, 100.0, "ok", self.world.now)

    def _soon(self) -> None:
        if not self._pumping:
            self._pumping = True
            self.world.at(self.world.now, self._pump)

    def _pump(self) -> None:
        self._pumping = False
        for tier in TIERS:
            line = self.waiting[tier]
            while line and self._send(line[0], again=True):
                line.popleft()

    def _tick(self) -> None:
        now = self.world.now
        for line in self.waiting.values():
            while line and now - line[0].since > WAIT_S:
                line.popleft()
                self.turned_away += 1
        self._pump()
        self.limits.append((now, self.gate.intake("r").concurrency.limit))
        self.world.at(now + TICK_S, self._tick)
