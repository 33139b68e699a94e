"""When a first token is so late that the request is worth sending a second time. Pure.

Learnt from each region's recent first tokens, as this edge saw them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

REMEMBERED = 64  # first tokens of each region
ENOUGH = 8  # below it nothing is known
QUANTILE = 0.95
SLACK_S = 0.05  # beside two round trips: earlier than that nothing is late
UNKNOWN_S = 1.0  # before enough were seen

_WORKED_OUT_EVERY = 32  # first tokens; more often while there are fewer


class _Seen:
    __slots__ = ("added", "due", "late_s", "times_s")

    def __init__(self) -> None:
        self.times_s: deque[float] = deque(maxlen=REMEMBERED)
        self.late_s = UNKNOWN_S
        self.added = 0
        self.due = ENOUGH  # worked out anew when so many were added


class FirstTokens:
    """How long first tokens took, by region."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def add(self, region: str, took_s: float) -> None:
        """A request's first token came after `took_s`; or it had not come by then, and is no
        longer waited for."""
        seen = self._seen.get(region)
        if seen is None:
            seen = self._seen[region] = _Seen()
        seen.times_s.append(took_s)
        seen.added += 1
        if seen.added >= seen.due:
            seen.due += min(seen.added, _WORKED_OUT_EVERY)
            ordered = sorted(seen.times_s)
            seen.late_s = ordered[min(int(QUANTILE * len(ordered)), len(ordered) - 1)]

    def keep(self, regions: Iterable[str]) -> None:
        """Forget every region but these."""
        kept = set(regions)
        self._seen = {region: seen for region, seen in self._seen.items() if region in kept}

    def late_s(self, region: str, rtt_ms: float, most_s: float) -> float:
        """How long to wait for a first token from there before it counts as late."""
        seen = self._seen.get(region)
        late_s = seen.late_s if seen is not None else UNKNOWN_S
        least_s = 2 * rtt_ms / 1000 + SLACK_S
        if late_s < least_s:
            late_s = least_s
        return late_s if late_s < most_s else most_s
