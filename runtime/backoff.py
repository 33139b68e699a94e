"""How long to wait before trying again: exponential, bounded, and never two nodes in step."""

from __future__ import annotations

from random import Random


class Backoff:
    """Delays that double from `min_s` up to `max_s`, each drawn from its upper half.

    The jitter keeps a thousand nodes that lost one server from coming back at once.
    """

    def __init__(self, rng: Random, min_s: float, max_s: float) -> None:
        self._rng = rng
        self._min_s = min_s
        self._max_s = max_s
        self._next_s = min_s

    def next_s(self) -> float:
        """Seconds to wait now; the next wait is longer."""
        delay_s = self._next_s * (0.5 + 0.5 * self._rng.random())
        self._next_s = min(self._next_s * 2.0, self._max_s)
        return delay_s

    def reset(self) -> None:
        """Something worked: begin with `min_s` again."""
        self._next_s = self._min_s
