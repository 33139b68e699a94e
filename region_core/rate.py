"""How many a second, lately: a rate that fades, read at `now`."""

from __future__ import annotations

import math


class Rate:
    """An exponentially fading count; half of what it reads is younger than `0.7 * window_s`."""

    __slots__ = ("_at", "_count", "_window_s")

    def __init__(self, window_s: float = 5.0) -> None:
        self._window_s = window_s
        self._count = 0.0
        self._at = 0.0

    def add(self, count: float, now: float) -> None:
        self._count = self._faded(now) + count
        self._at = now

    def per_s(self, now: float) -> float:
        return self._faded(now) / self._window_s

    def _faded(self, now: float) -> float:
        return self._count * math.exp(-max(0.0, now - self._at) / self._window_s)
