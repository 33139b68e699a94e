"""Is the path alive? When to ping, and when to give up. Pure: `now` is an argument, in seconds.

A path is dead when nothing at all arrived for `dead_after_s`, or `dead_after_rtts` round trips
if those are longer, while an answer was awaited: a request is open or a ping is unanswered.
Silence counts from the moment that something was awaited, so that an idle path is not dead, and
only when a packet that asks for an answer has been out for half that time, so that a process
that was stopped for a while does not blame the path.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

Action: TypeAlias = Literal["wait", "ping", "dead"]


class Verdict(Struct, frozen=True):
    """What to do now, and when to ask again at the latest."""

    action: Action
    again_s: float


class Liveness:
    """One path's silence. Call `heard` for every packet, `asked` for every one sent that is
    to be answered, and `judge` when the last verdict's time has come."""

    __slots__ = ("_asked_s", "_dead_after_rtts", "_dead_after_s", "_keep_alive_s", "heard_s")

    def __init__(
        self, now: float, keep_alive_s: float, dead_after_s: float, dead_after_rtts: float
    ) -> None:
        self._keep_alive_s = keep_alive_s
        self._dead_after_s = dead_after_s
        self._dead_after_rtts = dead_after_rtts
        self.heard_s = now
        self._asked_s: float | None = None  # the first question since we heard anything

    def patience_s(self, rtt_s: float | None) -> float:
        """How long a silence may last."""
        return max(self._dead_after_s, self._dead_after_rtts * (rtt_s or 0.0))

    def heard(self, now: float) -> None:
        self.heard_s = now
        self._asked_s = None

    def asked(self, now: float) -> None:
        if self._asked_s is None:
            self._asked_s = now

    def judge(self, now: float, rtt_s: float | None, awaited_since_s: float | None) -> Verdict:
        """`awaited_since_s` is when the tunnel last went from no open exchange to some."""
        patience = self.patience_s(rtt_s)
        if awaited_since_s is None and self._asked_s is None:
            ping_at = self.heard_s + self._keep_alive_s
            return self._due(now, ping_at, patience)
        waiting_since = min(t for t in (awaited_since_s, self._asked_s) if t is not None)
        dead_at = max(self.heard_s, waiting_since) + patience
        if self._asked_s is None:
            return self._due(now, max(self.heard_s, waiting_since) + patience / 3, patience)
        dead_at = max(dead_at, self._asked_s + patience / 2)
        return Verdict("dead", now) if now >= dead_at else Verdict("wait", dead_at)

    def _due(self, now: float, ping_at: float, patience: float) -> Verdict:
        return Verdict("ping", now + patience / 2) if now >= ping_at else Verdict("wait", ping_at)
