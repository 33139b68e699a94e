"""A circuit breaker: what is slow or dead is left alone for a while, then tried once. Pure.

Opens after `FAILURES` in a row; each failed try doubles how long it stays open.
"""

from __future__ import annotations

FAILURES = 3
HOLD_S = 1.0
HOLD_MAX_S = 60.0


class Circuit:
    """Ask `may` before each use, and tell of each use how it went."""

    __slots__ = ("_failures", "_hold_s", "_until")

    def __init__(self) -> None:
        self._failures = 0
        self._hold_s = HOLD_S
        self._until = float("-inf")

    def open(self, now: float) -> bool:
        return self._failures >= FAILURES and now < self._until

    def may(self, now: float) -> bool:
        """Whether it may be used. Where it has been open, one may, and others when that went
        well."""
        if self._failures < FAILURES:
            return True
        if now < self._until:
            return False
        self._until = now + self._hold_s
        return True

    def went_well(self) -> None:
        self._failures = 0
        self._hold_s = HOLD_S

    def failed(self, now: float) -> None:
        self._failures += 1
        if self._failures == FAILURES:
            self._until = now + self._hold_s
        elif self._failures > FAILURES:
            self._hold_s = min(HOLD_MAX_S, 2 * self._hold_s)
            self._until = now + self._hold_s
