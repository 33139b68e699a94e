"""How fast a region drains, and a leaky bucket that sends no faster while it is full. Pure.

The bucket is the generic cell rate algorithm (ITU-T I.371, annex A), in tokens: it keeps the time
at which all that was sent would have drained. Times in seconds; a clock that goes back loses what
was measured, one that jumps ahead forgets it.
"""

from __future__ import annotations

from math import exp

_TAU_S = 3.0  # of what is forgotten
_BEGUN_S = 0.25  # after a start, rates are taken over so long at least
_FORGOTTEN = 0.01  # requests: less is a new start

BURST_S = 0.5  # of draining, that may be sent at once
HEADROOM = 1.25  # times the rate: a region that drains faster is found out
DEBT_MOST_S = 2.0  # of draining: whatever was sent, others wait no longer


class Drain:
    """What ends in a second: requests, and their tokens."""

    __slots__ = ("_at", "_began", "_count", "_tokens")

    def __init__(self) -> None:
        self._at = self._began = 0.0
        self._count = self._tokens = 0.0

    def add(self, tokens: float, now: float) -> None:
        if now == self._at and self._count >= _FORGOTTEN:  # often: loops' clocks stand in a turn
            self._count += 1.0
            self._tokens += tokens
            return
        kept = self._kept(now)
        if now < self._at or self._count * kept < _FORGOTTEN:
            self._began, self._count, self._tokens, kept = now, 0.0, 0.0, 1.0
        self._count = self._count * kept + 1.0
        self._tokens = self._tokens * kept + tokens
        self._at = now

    def per_s(self, now: float) -> float:
        return self._count * self._kept(now) / self._over_s(now)

    def tokens_per_s(self, now: float) -> float:
        return self._tokens * self._kept(now) / self._over_s(now)

    def _kept(self, now: float) -> float:
        past = now - self._at
        return exp(-past / _TAU_S) if past > 0 else 1.0

    def _over_s(self, now: float) -> float:
        """How long it was measured, what fades counted by what is left of it."""
        return _TAU_S * (1.0 - exp(-max(_BEGUN_S, now - self._began) / _TAU_S))


class Pace:
    """Of one region. Rates are tokens per second; 0: not known, and nobody waits. `drained_at`:
    when all that was sent has drained; nobody waits from then on."""

    __slots__ = ("drained_at",)

    def __init__(self) -> None:
        self.drained_at = 0.0

    def wait_s(self, now: float) -> float:
        """Until the next may go; 0: now."""
        ahead = self.drained_at - now
        if ahead > DEBT_MOST_S:
            self.drained_at = now + DEBT_MOST_S  # the clock has gone back
            ahead = DEBT_MOST_S
        return ahead - BURST_S if ahead > BURST_S else 0.0

    def spend(self, tokens: float, rate: float, now: float) -> None:
        if rate > 0:
            begins = self.drained_at if self.drained_at > now else now
            self.drained_at = min(begins + tokens / (HEADROOM * rate), now + DEBT_MOST_S)

    def settle(self, tokens: float, rate: float, now: float) -> None:
        """What was sent came to so many more than was thought, or less than 0: fewer."""
        if rate > 0 and (tokens > 0 or self.drained_at > now):
            begins = max(self.drained_at, now)
            self.drained_at = min(begins + tokens / (HEADROOM * rate), now + DEBT_MOST_S)
