"""When those who were turned away should come back. Pure.

Each is given a time after those of its tier and of more urgent ones who were turned away before it,
at the pace at which the regions finish requests when they are busy, so that they do not all come
back at once to find no room again. Most of them need not be waited for once there is room: so
these count only as far as those who come now find none. The times are spread a little besides.
"""

from __future__ import annotations

from math import exp

from topology.cursor import TIERS, Tier

LEAST_S = 0.1
MOST_S = 30.0
SPREAD = 0.5  # of the time, at random, on top
SLOWEST_PER_S = 1.0  # a pace below that says nothing
BUSY_S = 10.0  # a pace is remembered about so long: with less to do regions finish less


class Comeback:
    """Of one edge worker. `now` is monotonic, in seconds."""

    __slots__ = ("_at", "_owed", "_pace")

    def __init__(self) -> None:
        self._owed = dict.fromkeys(TIERS, 0.0)  # who were turned away and are not due yet
        self._at = 0.0
        self._pace = SLOWEST_PER_S

    def after_s(
        self, tier: Tier, wait_s: float, drain_per_s: float, full: float, draw: float, now: float
    ) -> float:
        """For one more. `wait_s`: until there is room, by those who wait; `drain_per_s`: requests
        that are finished; `full`: the share of those who come now that find no room, at most 1;
        `draw` in [0, 1)."""
        past_s = max(0.0, now - self._at)
        self._at = now
        self._pace = pace = max(drain_per_s, self._pace * exp(-past_s / BUSY_S), SLOWEST_PER_S)
        owed, done, ahead = self._owed, past_s * pace, 0.0
        for each in TIERS:
            gone = min(owed[each], done)
            owed[each] -= gone
            done -= gone
        owed[tier] = min(owed[tier] + 1.0, MOST_S * pace)
        for each in TIERS[: TIERS.index(tier) + 1]:
            ahead += owed[each]
        told_s = max(wait_s, 0.0) + min(max(full, 0.0), 1.0) * ahead / pace
        return min(max(told_s, LEAST_S), MOST_S) * (1.0 + SPREAD * draw)
