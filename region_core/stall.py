"""Has the engine got stuck? Pure: `now` is an argument, in seconds.

An engine is stalled when it has work and has finished no step for a second, or for four times its
longest usual step if that is longer. It may be stuck in the driver of a GPU, or be a process that
was stopped: the core then still answers whoever asks, and serves nobody.
"""

from __future__ import annotations

LEAST_S = 1.0
STEPS = 4.0  # usual ones
FIRST_S = 10.0  # before any step was seen: an engine may compile, or page its weights in
_KNOWN = 3  # steps, before they say what is usual
_FORGETS = 64  # steps
_SHORT_S = LEAST_S / STEPS


class StallWatch:
    """Told of each step, and of work that comes when there was none. One thread writes."""

    __slots__ = ("_known", "_since_s", "_usual_s")

    def __init__(self, now: float) -> None:
        self._since_s = now
        self._usual_s = 0.0
        self._known = 0

    @property
    def limit_s(self) -> float:
        """How long a step may take."""
        return FIRST_S if self._known < _KNOWN else max(LEAST_S, STEPS * self._usual_s)

    def woken(self, now: float) -> None:
        """There is work again."""
        self._since_s = now

    def stepped(self, now: float, took_s: float) -> None:
        """A step ended, well or not. One that hung must not make the next one look usual."""
        self._since_s = now
        self._known += 1
        if took_s < self._usual_s:
            self._usual_s += (took_s - self._usual_s) / _FORGETS
        else:
            self._usual_s = min(took_s, max(2 * self._usual_s, _SHORT_S))

    def stalled(self, now: float) -> bool:
        """Whether it is, given that there is work."""
        return now - self._since_s > self.limit_s
