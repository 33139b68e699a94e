"""Which relays to one region are kept connected, without exchanging them to and fro. Pure.

The nearest candidates are. Who has a place keeps it while it is a candidate at all, until another
has stood before it for `CHALLENGE_S` and is connected: then the furthest goes, the one in use last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

CHALLENGE_S = 25.0  # reviews are further apart: it must stand there in two of them
CONNECT_S = 10.0  # who does not connect for so long takes nobody's place


class Standby:
    """Of one region. `choose` is asked whenever something changed, and now and then."""

    def __init__(self) -> None:
        self._challenger = ""
        self._started_s = 0.0
        self._before_s: dict[str, float] = {}  # outsider -> since when it is among the nearest

    def choose(
        self,
        candidates: Sequence[str],
        held: Mapping[str, bool],
        in_use: str,
        limit: int,
        now: float,
    ) -> tuple[str, ...]:
        """The relays to keep, at most `limit` and one that is to take another's place.

        `candidates` is best first, `held` says of those kept so far whether they are connected,
        and `in_use` is the one that requests go through now, if any.
        """
        nearest = candidates[:limit]
        if self._challenger not in nearest or self._challenger not in held:
            self._challenger = ""
        kept = [r for r in candidates if r in held and r != self._challenger]
        kept.sort(key=lambda relay: relay != in_use)
        kept = kept[:limit]
        if self._challenger:
            self._settle(kept, held[self._challenger], limit, now)
        free = (r for r in candidates if r not in kept and r != self._challenger)
        while len(kept) < limit and (relay := next(free, "")):
            kept.append(relay)
        if not self._challenger:
            self._challenge(kept, nearest, now)
        return (*kept, self._challenger) if self._challenger else tuple(kept)

    def _settle(self, kept: list[str], connected: bool, limit: int, now: float) -> None:
        """The challenger takes a place, or gives up, or goes on trying."""
        if connected or len(kept) < limit:
            del kept[limit - 1 :]
            kept.append(self._challenger)
        elif now - self._started_s < CONNECT_S:
            return
        self._before_s.pop(self._challenger, None)
        self._challenger = ""

    def _challenge(self, kept: Sequence[str], nearest: Sequence[str], now: float) -> None:
        outsiders = [relay for relay in nearest if relay not in kept]
        self._before_s = {relay: self._before_s.get(relay, now) for relay in outsiders}
        ripe = (r for r in outsiders if now - self._before_s[r] >= CHALLENGE_S)
        self._challenger = next(ripe, "")
        self._started_s = now
