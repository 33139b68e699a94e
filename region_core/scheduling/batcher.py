"""Continuous batching: who joins the next step, who leaves, and what the step computes.

Each step decodes one token for every sequence whose input is taken in, and spends what is
left of the token budget on input: of those that were admitted first, most urgent first, in
chunks, so that a long prompt delays the others by no more than one chunk. A sequence keeps its
slot to its end; there is room for a whole context in each, so nobody is ever evicted.

    plan = batcher.plan(now)     # state has moved on: the step is assumed to happen
    ... run plan.step ...
    batcher.finish(id, now)      # for each sequence that ended in it

The idea of a scheduler apart from the model is nano-vllm's.
"""

from __future__ import annotations

import heapq

from msgspec import Struct

from region_core.scheduling.plan import Chunk, Step
from region_core.scheduling.queue import Entry, PriorityQueue

_HOLD_WEIGHT = 0.1  # of the newest sequence in the mean time that a slot is held


class Limits(Struct, frozen=True):
    """How much a step, and the waiting room, may hold."""

    slots: int
    step_tokens: int  # through the model in one step; decodes come first
    chunk_tokens: int  # of one sequence's input in one step
    waiting: int


class Admitted(Struct, frozen=True):
    """A sequence got a slot."""

    id: int
    slot: int


class Plan(Struct, frozen=True):
    """What to do now, in this order: expire, release, admit, run the step."""

    expired: tuple[int, ...]  # ids whose deadline came, waiting or running
    released: tuple[int, ...]  # slots that nobody uses any more
    admitted: tuple[Admitted, ...]
    step: Step

    @property
    def empty(self) -> bool:
        return self.step.empty and not (self.expired or self.released or self.admitted)


class _Running:
    __slots__ = ("entry", "since", "slot", "taken")

    def __init__(self, entry: Entry, slot: int, since: float) -> None:
        self.entry = entry
        self.slot = slot
        self.since = since
        self.taken = 0  # input tokens that are in the cache

    @property
    def decodes(self) -> bool:
        return self.taken == self.entry.input_tokens


class Batcher:
    """The scheduler's state. Not thread-safe, reads no clock, does no I/O."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.queue = PriorityQueue(limits.waiting)
        self._free = list(range(limits.slots))  # heap: the lowest slot is taken first
        self._running: dict[int, _Running] = {}  # by id, in the order of admission
        self._released: list[int] = []
        self._mean_hold_s = 0.0

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self.queue)

    @property
    def load(self) -> float:
        """Sequences, running and waiting, per slot: 1 is full, more is queueing."""
        return (len(self._running) + len(self.queue)) / self.limits.slots

    @property
    def idle(self) -> bool:
        """Whether a plan made now would be empty, deadlines apart."""
        return not (self._running or self.queue or self._released)

    def has_room(self, urgency: int) -> bool:
        """Whether `submit` would take a request of this urgency."""
        return self.queue.has_room(urgency, self._unused)

    def submit(self, entry: Entry) -> Entry | None:
        """Let a request wait; returns whoever lost its place, or raises `QueueFull`.

        Those that find a free slot do not count as waiting: with no room to wait at all, there
        is still room to run.
        """
        return self.queue.push(entry, self._unused)

    @property
    def _unused(self) -> int:
        return len(self._free) + len(self._released)

    def expected_wait_s(self, urgency: int) -> float:
        """How long a newcomer would wait for a slot, from how long slots are held lately."""
        ahead = self.queue.ahead_of(urgency)
        if ahead < self._unused:
            return 0.0
        return (ahead - self._unused + 1) * self._mean_hold_s / self.limits.slots

    def cancel(self, entry_id: int) -> bool:
        """Drop a request, waiting or running; its slot is free in the next plan."""
        return self.queue.cancel(entry_id) or self._leave(entry_id)

    def finish(self, entry_id: int, now: float) -> None:
        """A sequence ended in the step that just ran."""
        running = self._running.get(entry_id)
        if running is not None:
            held = now - running.since
            weight = _HOLD_WEIGHT if self._mean_hold_s else 1.0
            self._mean_hold_s += weight * (held - self._mean_hold_s)
            self._leave(entry_id)

    def plan(self, now: float) -> Plan:
        """The next step. What it plans counts as done."""
        expired = self.queue.expire(now) + self._expire_running(now)
        released, self._released = tuple(self._released), []
        for slot in released:
            heapq.heappush(self._free, slot)
        admitted = self._admit(now)
        decodes = tuple(sorted(r.slot for r in self._running.values() if r.decodes))
        chunks = self._chunks(self.limits.step_tokens - len(decodes))
        return Plan(expired, released, admitted, Step(chunks, decodes))

    def _leave(self, entry_id: int) -> bool:
        running = self._running.pop(entry_id, None)
        if running is None:
            return False
        self._released.append(running.slot)
        return True

    def _expire_running(self, now: float) -> tuple[int, ...]:
        late = tuple(i for i, r in self._running.items() if r.entry.deadline_s <= now)
        for entry_id in late:
            self._leave(entry_id)
        return late

    def _admit(self, now: float) -> tuple[Admitted, ...]:
        admitted = []
        while self._free and (entry := self.queue.pop()) is not None:
            slot = heapq.heappop(self._free)
            self._running[entry.id] = _Running(entry, slot, now)
            admitted.append(Admitted(entry.id, slot))
        return tuple(admitted)

    def _chunks(self, budget: int) -> tuple[Chunk, ...]:
        partial = [r for r in self._running.values() if not r.decodes]
        partial.sort(key=lambda r: r.entry.urgency)  # stable: admission order within
        chunks = []
        for running in partial:
            left = running.entry.input_tokens - running.taken
            count = min(left, self.limits.chunk_tokens, budget)
            if count <= 0:
                break
            chunks.append(Chunk(running.slot, running.taken, count, count == left))
            running.taken += count
            budget -= count
        return tuple(chunks)
