"""The retry budget: what this edge may send again, or twice, beyond what its clients asked. Pure.

In the last ten seconds as many as a share of the requests, and in any case some a second, so that
a quiet edge can still retry. Both limits are held at every moment; a spend counts against both.
What it is for, and what costs nothing: docs/decisions/0015-one-budget.md.
"""

from __future__ import annotations

from math import inf

WINDOW_S = 10


class Budget:
    """Of one edge worker. `now` is in seconds, of any clock; one that stands still or goes back
    counts as the latest that was seen."""

    __slots__ = (
        "_asked",
        "_asked_in",
        "_floor",
        "_floor_at",
        "_next",
        "_second",
        "_slot",
        "_spent_in",
        "min_per_s",
        "refused",
        "share",
        "spent",
        "spent_recently",
    )

    def __init__(self, share: float = 0.1, min_per_s: float = 3.0) -> None:
        self.share = share
        self.min_per_s = min_per_s
        self.spent = 0  # in all
        self.refused = 0  # in all
        self.spent_recently = 0  # in the window
        self._asked = 0  # requests in the window
        self._asked_in = [0] * WINDOW_S  # by second
        self._spent_in = [0] * WINDOW_S
        self._second: int | None = None  # the latest that was counted in
        self._slot = 0  # its place in the window
        self._next = -inf  # when it is over
        self._floor = self._floor_max
        self._floor_at = 0.0

    def note(self, now: float) -> None:
        """A client's request is forwarded for the first time."""
        if now >= self._next:
            self._turn(int(now))
        self._asked += 1
        self._asked_in[self._slot] += 1

    def spend(self, now: float) -> bool:
        """Whether one more may be sent; if so, it is paid for."""
        second = self._turn(int(now))
        self._refill(now)
        within = self.spent_recently < int(self.share * self._asked)
        if not within and self._floor < 1.0:
            self.refused += 1
            return False
        self._floor = max(0.0, self._floor - 1.0)
        self._spent_in[second % WINDOW_S] += 1
        self.spent_recently += 1
        self.spent += 1
        return True

    def allowance(self, now: float) -> int:
        """How many more might be sent at once."""
        self._turn(int(now))
        self._refill(now)
        return max(int(self.share * self._asked) - self.spent_recently, int(self._floor), 0)

    @property
    def _floor_max(self) -> float:
        """A second's worth, so that what was not used does not add up."""
        return max(1.0, self.min_per_s) if self.min_per_s > 0 else 0.0

    def _refill(self, now: float) -> None:
        if now > self._floor_at:
            earned = (now - self._floor_at) * self.min_per_s
            self._floor = min(self._floor + earned, self._floor_max)
            self._floor_at = now
        self._floor = min(self._floor, self._floor_max)

    def _turn(self, second: int) -> int:
        """Forget what is older than the window; the second to count in."""
        if self._second is None:
            self._second = second
        for passed in range(self._second + 1, min(second, self._second + WINDOW_S) + 1):
            slot = passed % WINDOW_S
            self._asked -= self._asked_in[slot]
            self.spent_recently -= self._spent_in[slot]
            self._asked_in[slot] = self._spent_in[slot] = 0
        self._second = second = max(second, self._second)
        self._slot, self._next = second % WINDOW_S, second + 1
        return second
