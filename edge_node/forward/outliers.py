"""Outlier detection: who keeps failing is left alone, tried with one request, and taken back
slowly. Of the regions of an edge worker, or of the cores of a region. Pure.

well -> `consecutive_errors` in a row, or a stall -> held -> its time is over -> tried, one request
at a time -> an answer that came whole -> slow start, its part growing -> well. A failure while it
is tried holds it anew. How often it was held lately makes each hold longer, and is halved for
each time as long as the last hold in which it was not.

Panic floor: where more than `panic_share` of them would be left alone, nobody is: that many
do not fail by themselves, and those that are left would take it all.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from math import ceil
from random import Random

from msgspec import Struct

from topology.policy import OutlierPolicy

STALL_HOLD_S = 3.0  # the first; each further one that follows soon is twice as long
STALL_HOLD_MAX_S = 60.0
BELIEVE_S = 1.0  # an answer that ends so soon after a stall may have been on its way already
FORGIVE_S = 10.0  # the least time that halves how often one was held
PROBE_S = 5.0  # when a probe's answer takes longer, another request may be one
JITTER = 0.2  # of a hold, at most: it is shorter by so much
PARTS = 10  # steps of the slow start


class State(enum.Enum):
    """Where one stands."""

    WELL = "well"
    HELD = "held"
    TRIED = "tried"
    SLOW = "slow"


class _Member(Struct):
    """One that is in trouble, or was lately. Times are of our own clock, see `Outliers._time`."""

    state: State = State.WELL
    since_s: float = 0.0  # in this state
    until_s: float = 0.0  # held until then
    hold_s: float = 0.0  # the last one
    forgiven_s: float = 0.0  # up to when time that halves `count` was counted
    count: int = 0  # holds, lately
    why: str = ""
    stalled: bool = False  # what it is held for
    errors: int = 0  # in a row
    failed_s: float = 0.0  # the last time
    probe_s: float | None = None  # when a probe was sent whose answer is awaited


class Outliers:
    """`now` is in seconds, of any clock; where that goes back, time stands still for a moment.

    As many entries as `keep` names, at most. Who is not in trouble costs nothing.
    """

    def __init__(self, rng: Random, policy: OutlierPolicy | None = None) -> None:
        self._rng = rng
        self._policy = policy or OutlierPolicy()
        self._names: frozenset[str] = frozenset()
        self._troubled: dict[str, _Member] = {}
        self._clock_s: float | None = None
        self._now_s = 0.0
        self.holds = 0  # that began

    def use(self, policy: OutlierPolicy) -> None:
        """Go by it from now on; holds that have begun end as they would have."""
        self._policy = policy

    def keep(self, names: Iterable[str]) -> None:
        """All that there are; others are forgotten."""
        self._names = frozenset(names)
        self._troubled = {n: m for n, m in self._troubled.items() if n in self._names}

    def __bool__(self) -> bool:
        """Whether anybody is in trouble, or was lately."""
        return bool(self._troubled)

    def __len__(self) -> int:
        return len(self._troubled)

    # What happens

    def failed(self, name: str, why: str, now: float) -> bool:
        """A request failed by its fault. Whether that began a hold."""
        member = self._begin(name, now)
        if member is None:
            return False
        at, policy = self._now_s, self._policy
        apart = at - member.failed_s > policy.interval_s
        member.failed_s = at
        if member.state is State.HELD:
            return False
        if member.state is State.TRIED:  # what was sent before the hold says nothing new
            return member.probe_s is not None and self._hold(member, f"tried again: {why}")
        member.errors = 1 if apart else member.errors + 1
        if member.errors < policy.consecutive_errors:
            return False
        often = f"{member.errors} requests failed in a row, the last: " if member.errors > 1 else ""
        return self._hold(member, often + why)

    def stalled(self, name: str, why: str, now: float) -> bool:
        """It takes requests and gets nowhere: no error is waited for. Whether that began a hold:
        of those who say so together, one does."""
        member = self._begin(name, now)
        if member is None:
            return False
        member.failed_s = self._now_s
        return member.state is not State.HELD and self._hold(member, why, stalled=True)

    def served(self, name: str, now: float) -> bool:
        """An answer of it came whole. Whether more may be sent there than before."""
        member = self._troubled.get(name)
        if member is None:
            return False
        member.errors = 0
        self._step(name, member, now)
        at = self._now_s
        believed = (
            member.state is State.TRIED and member.probe_s is not None and at >= member.probe_s
        ) or (member.state is State.HELD and member.stalled and at - member.failed_s >= BELIEVE_S)
        if believed:
            if member.state is State.HELD:
                member.forgiven_s = at
            self._enter(member, State.SLOW)
            self._step(name, member, now)
        return believed

    def asked(self, name: str, now: float) -> bool:
        """A request is sent there. Whether that is a probe, for which all others wait."""
        member = self._troubled.get(name)
        if member is None:
            return False
        self._step(name, member, now)
        if member.state is not State.TRIED or self._is_probed(member):
            return False
        member.probe_s = self._now_s
        return True

    # What follows

    def why(self, name: str, now: float) -> str:
        """Why it is to be left alone now; empty: it is not."""
        return self.left_alone(now).get(name, "") if self._troubled else ""

    def left_alone(self, now: float) -> dict[str, str]:
        """All that are to be left alone now, each with the reason; none where that were more
        than the panic floor allows."""
        self._time(now)
        found = {}
        for name, member in list(self._troubled.items()):
            self._step(name, member, now)
            if member.state is State.HELD or self._is_probed(member):
                found[name] = member.why
        return found if len(found) <= self._policy.panic_share * len(self._names) else {}

    def part(self, name: str, now: float) -> float:
        """How much of its part of the requests it is to be given, above 0 and at most 1."""
        member = self._troubled.get(name)
        if member is None:
            return 1.0
        self._step(name, member, now)
        if member.state is not State.SLOW:
            return 1.0
        grown = (self._now_s - member.since_s) / self._policy.slow_start_s
        return min(PARTS, max(1, ceil(grown * PARTS))) / PARTS

    def state(self, name: str, now: float) -> State:
        """Where it stands, whatever the panic floor says."""
        member = self._troubled.get(name)
        if member is None:
            return State.WELL
        self._step(name, member, now)
        return member.state

    def failing(self, name: str, now: float) -> bool:
        """Whether the last that is known of it is a failure, lately."""
        member = self._troubled.get(name)
        if member is None:
            return False
        self._step(name, member, now)
        recent = self._now_s - member.failed_s <= self._policy.interval_s
        return member.state in (State.HELD, State.TRIED) or bool(member.errors and recent)

    # Inside

    def _time(self, now: float) -> float:
        """Our own time goes on as the caller's does, and never back."""
        if self._clock_s is not None and now > self._clock_s:
            self._now_s += now - self._clock_s
        self._clock_s = now
        return self._now_s

    def _begin(self, name: str, now: float) -> _Member | None:
        if name not in self._names:
            return None
        member = self._troubled.get(name)
        if member is None:
            self._time(now)
            member = self._troubled[name] = _Member(failed_s=self._now_s, forgiven_s=self._now_s)
        self._step(name, member, now)
        self._troubled[name] = member  # though it had just been forgiven
        return member

    def _step(self, name: str, member: _Member, now: float) -> None:
        """What the passing of time alone does."""
        at = self._time(now)
        if member.state is State.HELD and at >= member.until_s:
            self._enter(member, State.TRIED)
            member.forgiven_s = member.since_s = member.until_s
        if member.state is State.SLOW and at - member.since_s >= self._policy.slow_start_s:
            self._enter(member, State.WELL)
        if member.state is State.HELD:
            return
        every_s = max(FORGIVE_S, member.hold_s)
        while member.count and at - member.forgiven_s >= every_s:
            member.forgiven_s += every_s
            member.count //= 2
        streak = member.errors and at - member.failed_s <= self._policy.interval_s
        if member.state is State.WELL and not member.count and not streak:
            self._troubled.pop(name, None)

    def _hold(self, member: _Member, why: str, *, stalled: bool = False) -> bool:
        policy = self._policy
        member.count = min(member.count + 1, 1_000)
        if stalled:
            doubled_s = STALL_HOLD_S * 2.0 ** min(member.count - 1, 10)
            member.hold_s = min(doubled_s, STALL_HOLD_MAX_S, policy.hold_max_s)
        else:
            longest_s = min(policy.hold_s * member.count, policy.hold_max_s)
            member.hold_s = longest_s * (1.0 - JITTER * self._rng.random())
        self._enter(member, State.HELD)
        member.until_s = self._now_s + member.hold_s
        member.stalled, member.why, member.errors = stalled, why, 0
        self.holds += 1
        return True

    def _enter(self, member: _Member, state: State) -> None:
        member.state, member.since_s, member.probe_s = state, self._now_s, None

    def _is_probed(self, member: _Member) -> bool:
        """Whether one request is on its way there, and others wait for what becomes of it."""
        if member.state is not State.TRIED or member.probe_s is None:
            return False
        return self._now_s - member.probe_s < PROBE_S
