"""Figures that were set for a while, over those that last. Pure: `now` is an argument."""

from __future__ import annotations

from typing import Any

import msgspec

from lab.wan.figures import Figures


class Held:
    """One direction's figures. What is set for a while hides what lasts, figure by figure, and
    setting a figure for good ends what was set for a while."""

    def __init__(self, configured: Figures) -> None:
        self._configured = configured
        self._lasting = configured
        self._passing: dict[str, tuple[Any, float]] = {}  # figure -> value, until when

    def set(self, changes: dict[str, Any], until: float | None = None) -> None:
        if until is not None:
            self._passing |= {name: (value, until) for name, value in changes.items()}
            return
        self._lasting = msgspec.structs.replace(self._lasting, **changes)
        for name in changes:
            self._passing.pop(name, None)

    def reset(self) -> None:
        """As the settings have it."""
        self._lasting = self._configured
        self._passing.clear()

    def at(self, now: float) -> Figures:
        self._passing = {n: held for n, held in self._passing.items() if held[1] > now}
        values = {name: value for name, (value, _) in self._passing.items()}
        return msgspec.structs.replace(self._lasting, **values) if values else self._lasting

    def has_expired(self, now: float) -> bool:
        """Whether something ended since `at` was last asked."""
        return any(until <= now for _, until in self._passing.values())

    def left_s(self, now: float) -> dict[str, float]:
        """For how long those that were set for a while will hold."""
        return {name: until - now for name, (_, until) in self._passing.items() if until > now}
