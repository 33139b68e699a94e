"""How long to wait before trying again: exponential, bounded, and never two nodes in step."""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Delays that double from `min_s` up to `max_s`, each drawn from its upper half.

    `draw` returns a number in [0, 1), as `Random.random` does. The jitter keeps a thousand nodes
    that lost one server from coming back to it at once.
    """

    def __init__(self, min_s: float, max_s: float, draw: Callable[[], float]) -> None:
        self._min_s = min_s
        self._max_s = max_s
        self._draw = draw
        self._ceiling_s = min_s

    def next_s(self) -> float:
        """Seconds to wait now; the next wait is longer."""
        delay_s = self._ceiling_s * (0.5 + 0.5 * self._draw())
        self._ceiling_s = min(self._ceiling_s * 2.0, self._max_s)
        return delay_s

    def reset(self) -> None:
        """Something worked: begin with `min_s` again."""
        self._ceiling_s = self._min_s

    def exhaust(self) -> None:
        """Trying again soon would do harm: go on with the longest wait."""
        self._ceiling_s = self._max_s
