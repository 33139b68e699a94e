"""What a server says of the peers that it refuses."""

from __future__ import annotations

from runtime import logs
from runtime.clock import Clock

log = logs.get("overlay")


class Refusals:
    """Logs refused peers, at most once a second, with how many there were."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next_s = 0.0
        self._unlogged = 0

    def note(self, reason: str) -> None:
        self._unlogged += 1
        now = self._clock.now()
        if now >= self._next_s:
            self._next_s = now + 1.0
            log.warning("peers were refused", count=self._unlogged, last=reason)
            self._unlogged = 0
