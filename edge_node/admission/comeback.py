"""When those who were turned away should come back. Pure.

Each is given a time after those who were turned away before it, at the pace at which the regions
finish requests, so that they do not all come back at once to find no room again. The times are
spread a little besides.
"""

from __future__ import annotations

LEAST_S = 0.1
MOST_S = 30.0
SPREAD = 0.5  # of the time, at random, on top
SLOWEST_PER_S = 1.0  # a pace below that says nothing


class Comeback:
    """Of one edge worker. `now` is monotonic, in seconds."""

    __slots__ = ("_at", "_owed")

    def __init__(self) -> None:
        self._owed = 0.0  # who were turned away and are not due yet
        self._at = 0.0

    def after_s(self, wait_s: float, drain_per_s: float, draw: float, now: float) -> float:
        """For one more. `wait_s`: until there is room, by those who wait; `drain_per_s`: requests
        that are finished; `draw` in [0, 1)."""
        pace = max(drain_per_s, SLOWEST_PER_S)
        if now > self._at:
            self._owed = max(0.0, self._owed - (now - self._at) * pace)
        self._at = now
        self._owed = min(self._owed + 1.0, MOST_S * pace)
        told_s = max(wait_s, 0.0) + self._owed / pace
        return min(max(told_s, LEAST_S), MOST_S) * (1.0 + SPREAD * draw)
