"""The ways that one request went, and which it may go next. Pure.

A way is a region and the relay through which it is reached, "" where straight. No way is gone
twice unless it gave part of the answer, and no region asked again that failed, refused or stalled;
but where several cores of a region are reached, each of them counts as a way, and it is one core
that died or failed: the region is as good as before, until a second one of it does.
Where a way died under the request, the region at its end and the relay in its middle are in doubt:
either may be what died. What is not in doubt comes first, unless it is so far that trying a
doubtful way is still quicker.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from topology.paths import name_of
from topology.routing import Candidate

MOST_WAYS = 6  # of one request that gave it nothing
MOST_ATTEMPTS = 100  # what a frame can number
DOUBT_MS = 150.0  # what it takes to see that a way is dead, beside its round trip

_NOTHING: frozenset[str] = frozenset()


class Ways:
    """Of one request."""

    __slots__ = ("_closed", "_doubted", "_gone", "_left", "_lost", "count", "names")

    def __init__(self) -> None:
        self.names: list[str] = []  # for people, in order
        self.count = 0  # attempts so far
        self._left = 0
        self._gone: list[tuple[str, str]] = []
        self._closed = _NOTHING
        self._doubted = _NOTHING
        self._lost: tuple[str, ...] = ()  # the regions of cores that died or failed

    def go(self, candidate: Candidate) -> None:
        """The request goes that way now."""
        self.count += 1
        self._gone.append((candidate.region, candidate.relay))
        self.names.append(way_name(candidate))

    def close(self, region: str) -> bool:
        """The region itself cannot serve the request: it is not asked again. Whether it was open
        until now."""
        was_open = region not in self._closed
        self._closed |= {region}
        return was_open

    def is_closed(self, region: str) -> bool:
        return region in self._closed

    def doubt(self, candidate: Candidate) -> None:
        """That way died."""
        self._doubted |= {candidate.region, candidate.relay} - {""}

    def lose_core(self, candidate: Candidate, *, died: bool) -> bool:
        """One core died under the request, or failed it. Whether another of the region may be
        asked; those that died are not among `cores` any more when the way is chosen anew."""
        self._lost += (candidate.region,)
        lost = self._lost.count(candidate.region)
        if candidate.relay or candidate.cores < 2 or (not died and lost >= candidate.cores):
            return False
        if lost > 1:
            self._doubted |= {candidate.region}
        self._gone = [way for way in self._gone if way != (candidate.region, "")]
        return True

    def may_go(self, candidate: Candidate) -> bool:
        """Whether any way to that region is left."""
        return bool(self._open_ways(candidate))

    def reopen(self, candidate: Candidate) -> None:
        """That way gave part of the answer, or was left in peace: it may be gone again."""
        self._left += 1
        self._gone = [way for way in self._gone if way != (candidate.region, candidate.relay)]

    def next(
        self, candidates: Sequence[Candidate], besides: Candidate | None = None
    ) -> Candidate | None:
        """The way to go now, None where none is left. `besides`: the one that is gone already,
        whose region is the last choice."""
        if self.count - self._left >= MOST_WAYS or self.count >= MOST_ATTEMPTS:
            return None
        sound: Candidate | None = None
        doubtful: Candidate | None = None
        here = besides.region if besides is not None else ""
        for candidate in candidates:
            for way in self._open_ways(candidate):
                if candidate.region == here or self._in_doubt(way):
                    if doubtful is None or way.rtt_ms < doubtful.rtt_ms:
                        doubtful = way
                elif sound is None:
                    sound = way
                    break
        if doubtful is None or (sound is not None and sound.rtt_ms <= _cost_ms(doubtful)):
            return sound
        return doubtful

    def _open_ways(self, candidate: Candidate) -> list[Candidate]:
        if candidate.region in self._closed:
            return []
        ways = [candidate] + [
            msgspec.structs.replace(candidate, relay=relay, path=name_of(relay), others=())
            for relay in candidate.others
            if relay != candidate.relay
        ]
        return [way for way in ways if (way.region, way.relay) not in self._gone]

    def _in_doubt(self, way: Candidate) -> bool:
        return way.region in self._doubted or way.relay in self._doubted


def way_name(way: Candidate) -> str:
    """For people."""
    return f"{way.region} via {way.relay}" if way.relay else way.region


def _cost_ms(doubtful: Candidate) -> float:
    """What trying it costs where it turns out to be dead, and the next one is tried."""
    return 2 * doubtful.rtt_ms + DOUBT_MS
