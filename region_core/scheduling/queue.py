"""The waiting room: bounded, most urgent first, then first come first served.

Urgency is RFC 9218's, 0 (most urgent) to 7. When the room is full, a newcomer takes the place
of the last one to have come among the least urgent, if that one is less urgent than itself:
in a storm it is the batch work that is turned away. Every operation is O(log n) or better.
"""

from __future__ import annotations

import heapq

from msgspec import Struct

from region_core.errors import QueueFull

URGENCIES = 8


class Entry(Struct, frozen=True):
    """A request as the scheduler sees it. `deadline_s` is on the monotonic clock."""

    id: int
    urgency: int
    deadline_s: float
    input_tokens: int  # the prompt, and whatever of the answer the client already has


class PriorityQueue:
    """Entries that wait for a slot. Ids must be unique among those that wait."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._levels: tuple[dict[int, Entry], ...] = tuple({} for _ in range(URGENCIES))
        self._urgency: dict[int, int] = {}
        self._deadlines: list[tuple[float, int]] = []  # heap; entries that left are skipped

    def __len__(self) -> int:
        return len(self._urgency)

    def __contains__(self, entry_id: int) -> bool:
        return entry_id in self._urgency

    def has_room(self, urgency: int, extra: int = 0) -> bool:
        """Whether `push` would take an entry of this urgency."""
        return len(self) < self.capacity + extra or any(self._levels[urgency + 1 :])

    def push(self, entry: Entry, extra: int = 0) -> Entry | None:
        """Let `entry` wait. Returns the entry that lost its place to it, if one did.

        `extra` places are there beyond the capacity, just now. Raises `QueueFull` when there is
        no room and nobody less urgent waits.
        """
        displaced = None
        if len(self) >= self.capacity + extra:
            displaced = self._last_below(entry.urgency)
            if displaced is None:
                raise QueueFull(f"{len(self)} requests wait, and no more may")
            self.cancel(displaced.id)
        self._levels[entry.urgency][entry.id] = entry
        self._urgency[entry.id] = entry.urgency
        heapq.heappush(self._deadlines, (entry.deadline_s, entry.id))
        if len(self._deadlines) > 2 * len(self) + 16:
            self._compact()
        return displaced

    def pop(self) -> Entry | None:
        """The most urgent entry, of those the one that came first."""
        for level in self._levels:
            if level:
                entry = level.pop(next(iter(level)))
                del self._urgency[entry.id]
                return entry
        return None

    def cancel(self, entry_id: int) -> bool:
        """Forget an entry. False when it does not wait here."""
        urgency = self._urgency.pop(entry_id, None)
        if urgency is None:
            return False
        del self._levels[urgency][entry_id]
        return True

    def expire(self, now: float) -> tuple[int, ...]:
        """Remove the entries whose deadline has come, earliest first."""
        gone = []
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, entry_id = heapq.heappop(self._deadlines)
            if self._deadline_of(entry_id) == deadline and self.cancel(entry_id):
                gone.append(entry_id)
        return tuple(gone)

    def ahead_of(self, urgency: int) -> int:
        """How many would be served before a newcomer of this urgency."""
        return sum(len(level) for level in self._levels[: urgency + 1])

    def next_deadline(self) -> float | None:
        """A time at which `expire` may have work; not later than the earliest deadline."""
        return self._deadlines[0][0] if self._deadlines else None

    def _deadline_of(self, entry_id: int) -> float | None:
        urgency = self._urgency.get(entry_id)
        return None if urgency is None else self._levels[urgency][entry_id].deadline_s

    def _last_below(self, urgency: int) -> Entry | None:
        for level in reversed(self._levels[urgency + 1 :]):
            if level:
                return level[next(reversed(level))]
        return None

    def _compact(self) -> None:
        """Drop heap entries of those that left, so that the heap is bounded too."""
        held = (entry for level in self._levels for entry in level.values())
        self._deadlines = [(entry.deadline_s, entry.id) for entry in held]
        heapq.heapify(self._deadlines)
