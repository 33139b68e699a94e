"""Jittered exponential back-off."""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """How long to wait before the next attempt: 0.5 to 1 times min, 2 min, 4 min … max.

    `draw` returns a number in [0, 1). Without jitter, every edge that lost a region would
    come back to it in the same instant.
    """

    def __init__(self, min_s: float, max_s: float, draw: Callable[[], float]) -> None:
        self._min_s = min_s
        self._max_s = max_s
        self._draw = draw
        self._ceiling_s = min_s

    def next_s(self) -> float:
        """The wait before the next attempt, in seconds."""
        ceiling = self._ceiling_s
        self._ceiling_s = min(self._max_s, ceiling * 2)
        return ceiling * (0.5 + 0.5 * self._draw())

    def reset(self) -> None:
        """An attempt succeeded: start from the shortest wait again."""
        self._ceiling_s = self._min_s
