"""When a flapping link is up. Pure: `now` is an argument, and never goes back."""

from __future__ import annotations

from random import Random

from lab.wan.figures import Flap

_SHORTEST_S = 0.01


class Flapping:
    """Up and down in turn from `since` on, up first."""

    def __init__(self, flap: Flap, since: float, rng: Random) -> None:
        self._flap = flap
        self._rng = rng
        self._up = True
        self._until = since + self._length()

    def up(self, now: float) -> bool:
        while now >= self._until:
            self._up = not self._up
            self._until += self._length()
        return self._up

    def _length(self) -> float:
        mean = (self._flap.up_ms if self._up else self._flap.down_ms) / 1000
        if not self._flap.random:
            return mean
        return max(_SHORTEST_S, self._rng.expovariate(1 / mean))
