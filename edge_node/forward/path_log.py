"""What became of the ways to regions: the newest changes, and how many of each kind there were."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable

from runtime import logs
from topology.paths import UP, Measured, PathChange

log = logs.get("paths")

KEPT = 32  # changes, for heartbeats


class PathLog:
    """Of one edge worker. `counts` by region and kind; both sets are bounded."""

    def __init__(self) -> None:
        self.events: deque[PathChange] = deque(maxlen=KEPT)
        self.counts: Counter[tuple[str, str]] = Counter()

    def take(self, change: PathChange, kind: str) -> None:
        self.events.append(change)
        self.counts[change.region, kind] += 1
        log.info(
            "path",
            region=change.region,
            before=change.before,
            after=change.after,
            kind=kind,
            why=change.why,
        )

    def keep(self, regions: Iterable[str]) -> None:
        """Count for every region but these no more."""
        kept = set(regions)
        self.counts = Counter({k: n for k, n in self.counts.items() if k[0] in kept})


def kind_of(change: PathChange, state_of: Callable[[str], Measured | None]) -> str:
    """Why a region is reached another way, in one word: `reached` it was not before, `lost` it is
    not any more, `dropped` the way before is kept no longer, `died`, or `better` is the new one.

    `state_of` tells what is measured now of a way by its name.
    """
    if not change.before:
        return "reached"
    if not change.after:
        return "lost"
    before = state_of(change.before)
    if before is None:
        return "dropped"
    return "better" if before.state in UP else "died"
