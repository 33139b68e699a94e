"""Whether regions still bring the answers on that they have begun. Pure.

A region whose every answer stands still at once, for far longer than usual, does not serve,
whatever its probes say. One answer that stands still alone is looked at by its own limit.
Time that passed while this process itself did not run counts for nothing: it has not read what
came meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from msgspec import Struct

LOOK_EVERY_S = 0.1
STALL_LEAST_S = 1.0
STALL_GAPS = 10.0  # this many usual gaps between two pieces of an answer
STALL_PAUSES = 2.0  # this many of the longest pauses that the region made of late
PAUSE_HALF_LIFE_S = 30.0
UNKNOWN_S = 3.0  # what a stall takes where too little was seen to know what is usual
ENOUGH_PIECES = 8.0
_FORGET = 0.9  # of what is known of a region's pace, at each look that brought something


class Stream(Protocol):
    """An answer under way. `seen` and `moved_at` are this module's to write."""

    waiting: bool  # for its region, and not for its client
    seen: int
    moved_at: float

    @property
    def region(self) -> str: ...

    @property
    def pieces(self) -> int:
        """How many have come."""
        ...

    @property
    def silence_s(self) -> float:
        """Its own limit."""
        ...

    @property
    def begun(self) -> bool:
        """Whether its region has given any of it."""
        ...


class Stall(Struct, frozen=True):
    """A region in which everything stands still."""

    region: str
    why: str


S = TypeVar("S", bound=Stream)


class Look(Struct, Generic[S], frozen=True):
    """What was seen. `silent` are answers that stand still beyond their own limit."""

    stalls: tuple[Stall, ...]
    silent: tuple[S, ...]


class _Pace:
    """Of one region."""

    __slots__ = ("pause_s", "pieces", "still_since", "stream_s", "streams")

    def __init__(self, now: float) -> None:
        self.still_since = now
        self.streams = 0  # at the last look
        self.stream_s = 0.0  # seconds that answers took, and
        self.pieces = 0.0  # pieces that they brought in them, both fading
        self.pause_s = 0.0  # the longest in which nothing came, fading

    def limit_s(self) -> float:
        if self.pieces < ENOUGH_PIECES:
            return UNKNOWN_S
        gap_s = self.stream_s / self.pieces
        return max(STALL_LEAST_S, STALL_GAPS * gap_s, STALL_PAUSES * self.pause_s)


class Progress:
    """Look every `LOOK_EVERY_S` while answers are under way."""

    def __init__(self) -> None:
        self._now = 0.0  # our own time, which stands still while this process does
        self._looked_at: float | None = None
        self._paces: dict[str, _Pace] = {}

    def look(self, streams: Iterable[S], now: float) -> Look[S]:
        """`now` in seconds, of a clock that does not go back."""
        passed = now - self._looked_at if self._looked_at is not None else 0.0
        passed = max(0.0, min(passed, 2 * LOOK_EVERY_S))
        self._looked_at = now
        self._now += passed
        moved: dict[str, list[int]] = {}  # region -> answers that wait for it, pieces that came
        silent = []
        for stream in streams:
            if not stream.begun:
                continue
            came = stream.pieces - stream.seen
            if came or not stream.waiting:
                stream.seen, stream.moved_at = stream.pieces, self._now
            elif self._now - stream.moved_at > stream.silence_s:
                silent.append(stream)
            if stream.waiting or came:
                counts = moved.setdefault(stream.region, [0, 0])
                counts[0] += 1
                counts[1] += max(0, came)
        return Look(self._stalls(moved, passed), tuple(silent))

    def forget(self) -> None:
        """Nothing is under way: the next look is the first."""
        self._looked_at = None
        for pace in self._paces.values():
            pace.streams = 0

    def keep(self, regions: Iterable[str]) -> None:
        """Forget every region but these."""
        kept = set(regions)
        self._paces = {region: p for region, p in self._paces.items() if region in kept}

    def limit_s(self, region: str) -> float:
        """How long all answers there may stand still."""
        pace = self._paces.get(region)
        return pace.limit_s() if pace is not None else UNKNOWN_S

    def _stalls(self, moved: dict[str, list[int]], passed: float) -> tuple[Stall, ...]:
        stalls = []
        for region, pace in self._paces.items():
            if region not in moved:
                pace.streams = 0
            pace.pause_s *= 0.5 ** (passed / PAUSE_HALF_LIFE_S)
        for region, (streams, pieces) in moved.items():
            pace = self._paces.setdefault(region, _Pace(self._now))
            if pace.streams == 0:
                pace.still_since = self._now
            elif pieces:
                self._go_on(pace, streams, pieces)
            elif self._now - pace.still_since > pace.limit_s():
                still_s = self._now - pace.still_since
                what = "an answer" if streams == 1 else f"{streams} answers"
                stalls.append(Stall(region, f"{what} of it stood still for {still_s:.1f} s"))
                pace.still_since = self._now  # said once, and again when as much time has passed
            pace.streams = streams
        return tuple(stalls)

    def _go_on(self, pace: _Pace, streams: int, pieces: int) -> None:
        paused_s = self._now - pace.still_since
        pace.still_since = self._now
        pace.pause_s = max(pace.pause_s, paused_s - LOOK_EVERY_S)
        pace.stream_s = pace.stream_s * _FORGET + streams * paused_s
        pace.pieces = pace.pieces * _FORGET + pieces
