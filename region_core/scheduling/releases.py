"""When slots are left: how many steps until the n-th time that one is.

A slot in use is left when its sequence ends, which is known as a few equally likely numbers of
steps; after that, again and again, by those that wait. The expected number of times by a moment is
that of a renewal process: one for the sequence that runs, then a line of slope 1 / `held` with the
asymptotic offset (variation - 1) / 2 (Cox, Renewal Theory, 1962). Its inverse is what is asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Releases:
    """`ends`: steps until slots in use are left, all equally likely to count, each as `weight`
    slots; `held`: steps that one that waits will hold a slot; `variation`: variance of that by
    its squared mean."""

    __slots__ = ("_counts", "_rate", "_steps")

    def __init__(self, ends: Sequence[float], weight: float, held: float, variation: float) -> None:
        held = max(held, 1.0)
        growing = held * max(0.0, (1 - variation) / 2)  # after its end, until a slot's line begins
        turns = sorted(
            [(end, weight, 0.0) for end in ends]
            + [(end + growing, 0.0, weight / held) for end in ends]
        )
        self._steps: list[float] = []
        self._counts: list[float] = []
        count, rate, last = 0.0, 0.0, 0.0
        for at, jump, slope in turns:
            count += rate * (at - last) + jump
            rate, last = rate + slope, at
            self._steps.append(at)
            self._counts.append(count)
        self._rate = rate

    def steps_until(self, times: float) -> float:
        """In how many steps slots will have been left that many times."""
        counts, steps = self._counts, self._steps
        if not counts:
            return 0.0
        if times >= counts[-1]:
            return steps[-1] + (times - counts[-1]) / self._rate
        index = bisect_left(counts, times)
        if index == 0:
            return steps[0] * times / counts[0]
        below, width = counts[index - 1], counts[index] - counts[index - 1]
        part = (times - below) / width if width > 0 else 1.0
        return steps[index - 1] + part * (steps[index] - steps[index - 1])
