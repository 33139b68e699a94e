"""Whom the core does not take on, and what they are told: by level, by forecast, for want of room.

In a storm most requests are refused: this is the short path, and nothing here depends on the size
of a request. Everything happens on the event loop.
"""

from __future__ import annotations

from math import ceil
from random import Random

from region_core.job import Failed, Job, above_level, foreseen, overloaded, too_late
from region_core.report import Counters
from region_core.runner import Runner
from region_core.scheduling.admission import Refusal, retry_after_s
from region_core.scheduling.forecast import Ask, Estimate
from region_core.scheduling.level import Level, Moment
from runtime.clock import Clock
from topology.cursor import ALL_ADMITTED, tier_of

NEVER_S = 1e15  # a deadline that never comes
_ANY = 3  # the urgency of all, where nobody is protected
_AT_ONCE = Estimate(0.0, 0.0, 0.0, 0.0, 0.0)


class Shedding:
    """`level` None: nobody is refused by level. `protect` False: nobody is, as long as there is
    room to wait, and all are the same."""

    def __init__(
        self,
        runner: Runner,
        counters: Counters,
        clock: Clock,
        rng: Random,
        level: Level | None,
        protect: bool,
    ) -> None:
        self.protect = protect
        self._runner = runner
        self._counters = counters
        self._clock = clock
        self._rng = rng
        self._level = level

    @property
    def level(self) -> int:
        """Requests whose cursor is below it are admitted (`topology.cursor`)."""
        return ALL_ADMITTED if self._level is None else self._set(self._level).value

    @property
    def queue_ms(self) -> float:
        """About how long the last of those that wait has to."""
        return 0.0 if self._level is None else 1000 * self._level.wait_s(self._runner.waiting)

    def aim(self, queue_target_s: float) -> None:
        """How long requests may wait, where the level is in use."""
        if self._level is not None:
            self._level.aim(queue_target_s)

    def refusal(self, job: Job, least_tokens: int, limit_tokens: int) -> Failed | None:
        """Why a request is refused before it costs anything. Its input is taken to be as short as
        it can be: `foresee` is asked again with its tokens."""
        runner = self._runner
        if not self.protect:
            return None if runner.has_room(_ANY, "") else self.full(0.0)
        level = None if self._level is None else self._set(self._level)
        if level is not None and not self._admits(level, job):
            return self._above(level, job)
        resumed = len(job.resume)
        limit = max(1, limit_tokens - resumed)
        ask = Ask(job.urgency, job.tenant, least_tokens + resumed, limit, resumed > 0)
        estimate, refusal = runner.foresee(ask, job.deadline_s)
        if refusal is not None:
            return self._foreseen(refusal)
        if not runner.has_room(job.urgency, job.tenant):
            return self.full(estimate.wait_s)
        if level is not None:
            level.came(job.cursor)  # those that cannot be answered anyway push nobody out
        return None

    def ask(self, job: Job, input_tokens: int, limit_tokens: int) -> tuple[Ask, float]:
        """How a request is to be scheduled, and its deadline."""
        if not self.protect:
            return Ask(_ANY, "", input_tokens, limit_tokens), NEVER_S
        resumed = bool(job.resume)
        ask = Ask(job.urgency, job.tenant, input_tokens, limit_tokens, resumed, job.weight)
        return ask, job.deadline_s

    def foresee(self, ask: Ask, deadline_s: float) -> tuple[Estimate, Failed | None]:
        """What it has to expect, and why it is refused, if it is."""
        if not self.protect:
            return _AT_ONCE, None
        estimate, refusal = self._runner.foresee(ask, deadline_s)
        return estimate, None if refusal is None else self._foreseen(refusal)

    def full(self, wait_s: float, cause: str = "full") -> Failed:
        """There is no room to wait."""
        retry_after_ms = self._retry_after_ms(wait_s)
        return overloaded(self._runner.waiting, retry_after_ms, wait_s * 1000, cause)

    def _admits(self, level: Level, job: Job) -> bool:
        if job.resume or job.cursor < level.value:
            return True
        runner = self._runner
        return level.admits(job.cursor, job.urgency, runner.waiting_by_urgency, runner.unused)

    def _set(self, level: Level) -> Level:
        now = self._clock.now()
        if level.due(now):
            runner = self._runner
            waiting, places = runner.waiting_by_urgency, runner.places_per_s()
            level.review(Moment(waiting, runner.unused, places), now)
        return level

    def _above(self, level: Level, job: Job) -> Failed:
        if job.deadline_s <= self._clock.now():
            return too_late("late")
        level.came(job.cursor)
        shed, tier = self._counters.shed, tier_of(job.urgency)
        shed[tier] = shed.get(tier, 0) + 1
        wait_s = level.wait_s(self._runner.waiting)
        return above_level(self._retry_after_ms(level.retry_s), wait_s * 1000)

    def _foreseen(self, refusal: Refusal) -> Failed:
        if refusal.left_s <= 0:
            return too_late("late")
        return foreseen(refusal, self._retry_after_ms(refusal.drain_s), refusal.drain_s * 1000)

    def _retry_after_ms(self, drain_s: float) -> int:
        return ceil(1000 * retry_after_s(drain_s, self._rng.random()))
