"""How fast nodes are taken in: after an outage they all come at once. Pure."""

from __future__ import annotations


class Admission:
    """A token bucket that hands out places in a queue: `reserve` says how long to wait.

    Up to `burst` nodes come in at once, then `rate_per_s`. A node that would wait longer than
    `longest_wait_s` is turned away instead: it tries another replica, or comes back.
    """

    def __init__(self, rate_per_s: float, burst: int, longest_wait_s: float) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._longest_wait_s = longest_wait_s
        self._tokens = float(burst)
        self._at_s: float | None = None

    def reserve(self, now_s: float) -> float | None:
        """Seconds until this node may come in; None: turned away."""
        if self._at_s is not None:
            gained = (now_s - self._at_s) * self._rate_per_s
            self._tokens = min(float(self._burst), self._tokens + gained)
        self._at_s = now_s
        wait_s = max(0.0, (1.0 - self._tokens) / self._rate_per_s)
        if wait_s > self._longest_wait_s:
            return None
        self._tokens -= 1.0
        return wait_s
