"""A discrete simulation of a core: the real batcher, invented requests, invented step times.

No thread, no clock: one step after the other. What was foreseen of each request is kept beside
what became of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import median, quantiles

from region_core.scheduling.admission import Refusal
from region_core.scheduling.batcher import Batcher, Limits
from region_core.scheduling.forecast import Ask, Estimate
from region_core.scheduling.level import Level, Moment
from region_core.scheduling.plan import Step
from topology.cursor import ALL_ADMITTED
from topology.fair_queue import QueueFull

LIMITS = Limits(slots=16, step_tokens=512, chunk_tokens=256, waiting=256)


def sim_seconds(step: Step) -> float:
    """The `sim` engine's service time, as it is by default."""
    decodes = len(step.decodes)
    tokens = step.tokens - decodes
    return tokens / 2000 + ((13 + 0.7 * (decodes - 1)) / 1000 if decodes else 0.0)


@dataclass
class Request:
    """One that comes at `at`, and answers with `length` tokens, or `limit`."""

    at: float
    length: int
    input_tokens: int = 40
    limit: int = 512
    urgency: int = 3
    tenant: str = ""
    deadline_s: float = 1e9  # from when it comes
    cursor: int = 0

    estimate: Estimate | None = None
    refusal: Refusal | None = None
    full: bool = False
    shed: bool = False  # by level
    first_s: float | None = None
    done_s: float | None = None
    cut: bool = False
    made: int = 0

    @property
    def in_time(self) -> bool:
        return self.done_s is not None


@dataclass
class World:
    """`admits`: whether the forecast may refuse."""

    limits: Limits = LIMITS
    seconds: Callable[[Step], float] = sim_seconds
    admits: bool = True
    level: Level | None = None
    follows: bool = False  # senders know the level, `late_s` later, and hide what it would refuse
    late_s: float = 0.2
    now: float = 0.0
    by_id: dict[int, Request] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.batcher = Batcher(self.limits)
        self._slots: dict[int, int] = {}
        self.levels: list[tuple[float, int]] = []
        self.busy_s = 0.0
        self.places: list[tuple[float, Request]] = []  # given, in their order

    def run(self, requests: Sequence[Request], until: float = 1e9) -> None:
        """Let them all come, and everything end."""
        coming = sorted(requests, key=lambda request: request.at, reverse=True)
        while (coming or not self.batcher.idle) and self.now < until:
            while coming and coming[-1].at <= self.now:
                self._comes(coming.pop())
            if self.batcher.idle:
                if coming:
                    self.now = coming[-1].at
                continue
            self._step(coming)

    def _comes(self, request: Request) -> None:
        b, now = self.batcher, request.at
        if self.level is not None and not self._by_level(self.level, request):
            request.shed = True
            return
        ask = Ask(request.urgency, request.tenant, request.input_tokens, request.limit)
        deadline_s = now + request.deadline_s
        request.estimate, refused = b.foresee(ask, deadline_s, now)
        if self.admits:
            request.refusal = refused
            if refused is not None:
                return
        number = len(self.by_id) + 1
        entry = b.entry(number, ask, deadline_s, request.estimate, now)
        try:
            displaced = b.submit(entry)
        except QueueFull:
            request.full = True
            return
        self.by_id[number] = request
        if displaced is not None:
            self.by_id[displaced.id].full = True

    def _by_level(self, level: Level, request: Request) -> bool:
        b, now = self.batcher, request.at
        waiting = b.queue.waiting()
        if level.due(now):
            level.review(Moment(waiting, b.unused, b.places_per_s()), now)
            self.levels.append((now, level.value))
        if self.follows and request.cursor >= self._told(now):
            return False  # it never comes
        level.came(request.cursor)
        return level.admits(request.cursor, request.urgency, waiting, b.unused)

    def _told(self, now: float) -> int:
        """The level, as senders know it."""
        for at, value in reversed(self.levels):
            if at <= now - self.late_s:
                return value
        return ALL_ADMITTED

    def _step(self, coming: list[Request]) -> None:
        b = self.batcher
        plan = b.plan(self.now)
        for number in (*plan.expired, *plan.given_up):
            self.by_id[number].cut = True
        for slot in plan.released:
            self._slots.pop(slot, None)
        for admitted in plan.admitted:
            self._slots[admitted.slot] = admitted.id
            self.places.append((self.now, self.by_id[admitted.id]))
        if plan.step.empty:
            return
        took = self.seconds(plan.step)
        self.busy_s += took
        end = self.now + took
        while coming and coming[-1].at < end:  # in the middle of the step
            self._comes(coming.pop())
        self.now = end
        b.ran(plan.step, took, end)
        for slot in (*plan.step.decodes, *(c.slot for c in plan.step.chunks if c.last)):
            self._sampled(self._slots[slot])

    def _sampled(self, number: int) -> None:
        request = self.by_id[number]
        request.made += 1
        if request.first_s is None:
            request.first_s = self.now - request.at
        whole = request.made >= request.length
        if whole or request.made >= request.limit:
            request.done_s = self.now - request.at
            self.batcher.finish(number, whole)


def poisson(rng: Random, per_s: float, begin: float, end: float) -> list[float]:
    times, now = [], begin + rng.expovariate(per_s)
    while now < end:
        times.append(now)
        now += rng.expovariate(per_s)
    return times


@dataclass
class Errors:
    """Of first tokens, against what was foreseen: of those that waited."""

    count: int
    median: float  # |actual - estimate| / actual
    p90: float
    late: float  # share that came after `late_s`
    bias: float  # mean of (estimate - actual) / actual


def errors(requests: Sequence[Request], least_s: float = 0.1) -> Errors:
    pairs = [
        (r.estimate, r.first_s)
        for r in requests
        if r.estimate is not None and r.first_s is not None and r.first_s > least_s
        and r.estimate.wait_s > 0
    ]  # fmt: skip
    off = sorted(abs(took - found.first_token_s) / took for found, took in pairs)
    late = sum(took > found.late_s for found, took in pairs) / len(pairs)
    bias = sum((found.first_token_s - took) / took for found, took in pairs) / len(pairs)
    return Errors(len(pairs), median(off), quantiles(off, n=10)[8], late, bias)
