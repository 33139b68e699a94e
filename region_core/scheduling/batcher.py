"""Continuous batching: who joins the next step, who leaves, and what the step computes.

Each step decodes one token for every sequence whose input is taken in, and spends what is
left of the token budget on input: of those that were admitted first, most urgent first, in
chunks, so that a long prompt delays the others by no more than one chunk. A sequence keeps its
slot to its end; there is room for a whole context in each, so nobody is ever evicted.

    plan = batcher.plan(now)     # state has moved on: the step is assumed to happen
    ... run plan.step ...
    batcher.ran(plan.step, took_s, now)  # it went well: what is learnt from it
    batcher.finish(id, whole)    # for each sequence that ended in it

`forecast` (forecast.py) says what a newcomer has to expect of all this.
The idea of a scheduler apart from the model is nano-vllm's.
"""

from __future__ import annotations

import heapq
from math import ceil, inf

from msgspec import Struct

from region_core.scheduling.admission import Refusal, refusal, useful_s
from region_core.scheduling.forecast import Ask, Estimate, Forecast, Scene
from region_core.scheduling.plan import Chunk, Step
from region_core.scheduling.releases import Releases
from topology.fair_queue import URGENCIES, Entry, PriorityQueue

_LOOKS_AT = 64  # sequences, of those that run
_SHARES = (1 / 8, 3 / 8, 5 / 8, 7 / 8)  # of cases: how many more tokens an answer has
_ANY_LIMIT = 1 << 30
_HANGS = 3.0  # times as long as expected
_SCENE_S = 0.05  # how long a view of the batch is good for, if nobody comes or leaves


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
    given_up: tuple[int, ...]  # that waited, and can no longer be answered in time
    released: tuple[int, ...]  # slots that nobody uses any more
    admitted: tuple[Admitted, ...]
    step: Step

    @property
    def empty(self) -> bool:
        return self.step.empty and not (
            self.expired or self.given_up or self.released or self.admitted
        )


class _Running:
    __slots__ = ("began", "entry", "slot", "taken")

    def __init__(self, entry: Entry, slot: int) -> None:
        self.entry = entry
        self.slot = slot
        self.taken = 0  # input tokens that are in the cache
        self.began = -1  # the step that sampled its first token

    @property
    def decodes(self) -> bool:
        return self.taken == self.entry.input_tokens


class Batcher:
    """The scheduler's state. Not thread-safe, reads no clock, does no I/O."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.queue = PriorityQueue(limits.waiting)
        self.forecast = Forecast()
        self._free = list(range(limits.slots))  # heap: the lowest slot is taken first
        self._running: dict[int, _Running] = {}  # by id, in the order of admission
        self._released: list[int] = []
        self._beginning: list[_Running] = []  # that the step gives their first token
        self._steps = 0  # planned
        self._scene: Scene | None = None
        self._scene_s = 0.0
        self._ends_s = inf  # by then the step under way should have ended

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

    def has_room(self, urgency: int, tenant: str = "") -> bool:
        """Whether `submit` would take a request of this urgency and tenant."""
        return self.queue.has_room(urgency, self._unused, tenant)

    def submit(self, entry: Entry) -> Entry | None:
        """Let a request wait; returns whoever lost its place, or raises `QueueFull`.

        Those that find a free slot do not count as waiting: with no room to wait at all, there
        is still room to run.
        """
        displaced = self.queue.push(entry, self._unused)
        if displaced is not None:
            self._unserved(displaced, entry.since_s)
        return displaced

    @property
    def _unused(self) -> int:
        return len(self._free) + len(self._released)

    def foresee(self, ask: Ask, deadline_s: float, now: float) -> tuple[Estimate, Refusal | None]:
        """What a newcomer would have to expect, and why it should not be taken on, if so."""
        ahead = self.queue.ahead_of(ask.urgency, ask.tenant)
        estimate = self.forecast.estimate(ask, ahead, self._view(now), self._hangs_s(now))
        return estimate, refusal(estimate, deadline_s - now, self.idle, ask.resumed)

    def entry(
        self, entry_id: int, ask: Ask, deadline_s: float, estimate: Estimate, now: float
    ) -> Entry:
        """The newcomer, as it is to be submitted."""
        return Entry(
            entry_id,
            ask.urgency,
            deadline_s,
            ask.input_tokens,
            ask.limit_tokens,
            answer_tokens=self.forecast.lengths.expected(ask.limit_tokens),
            tenant=ask.tenant,
            since_s=now,
            promised_s=estimate.first_token_s if estimate.wait_s > 0 else 0.0,
            useful_s=None if ask.resumed else useful_s(estimate, deadline_s),
        )

    def cancel(self, entry_id: int) -> bool:
        """Drop a request, waiting or running; its slot is free in the next plan."""
        return self.queue.cancel(entry_id) or self._leave(entry_id, whole=False)

    def ran(self, step: Step, took_s: float, now: float) -> None:
        """The step that was planned last ended well, `now`."""
        self._ends_s = inf
        self.forecast.stepped(step, took_s)
        for running in self._beginning:
            running.began = self._steps
            entry = running.entry
            self.forecast.came(entry.promised_s, now - entry.since_s)

    def finish(self, entry_id: int, whole: bool | None = None) -> None:
        """A sequence ended in the step that just ran; `whole`: its answer ended by itself, or it
        was cut. None: it was lost."""
        self._ends_s = inf
        self._leave(entry_id, whole)

    def plan(self, now: float) -> Plan:
        """The next step. What it plans counts as done."""
        left = self.queue.expire(now)
        for entry in left:
            self._unserved(entry, now)
        expired = tuple(entry.id for entry in left if entry.deadline_s <= now)
        given_up = tuple(entry.id for entry in left if entry.deadline_s > now)
        expired += self._expire_running(now)
        released, self._released = tuple(self._released), []
        for slot in released:
            heapq.heappush(self._free, slot)
        admitted = self._admit(now)
        self._steps += 1
        decodes = tuple(sorted(r.slot for r in self._running.values() if r.decodes))
        chunks = self._chunks(self.limits.step_tokens - len(decodes))
        step = Step(chunks, decodes)
        self._ends_s = inf if step.empty else now + _HANGS * self.forecast.expected_s(step)
        return Plan(expired, given_up, released, admitted, step)

    def _leave(self, entry_id: int, whole: bool | None) -> bool:
        running = self._running.pop(entry_id, None)
        if running is None:
            return False
        self._released.append(running.slot)
        self._scene = None
        if running.began >= 0 and whole is not None:
            self.forecast.lengths.ended(self._made(running), whole)
        return True

    def _hangs_s(self, now: float) -> float:
        return max(0.0, now - self._ends_s)

    def _made(self, running: _Running) -> int:
        """Tokens of its answer."""
        return self._steps - running.began + 1 if running.began >= 0 else 0

    def _view(self, now: float) -> Scene:
        """The batch as it is; looked at anew when somebody came or left, or after a while."""
        if self._scene is None or now - self._scene_s > _SCENE_S:
            self._scene, self._scene_s = self._look(now), now
        return self._scene

    def _look(self, now: float) -> Scene:
        limits, running = self.limits, list(self._running.values())
        return Scene(
            slots=limits.slots,
            free=self._unused,
            running=len(running),
            releases=self._releases(running, now),
            input_tokens=sum(r.entry.input_tokens - r.taken for r in running),
            chunk_tokens=limits.chunk_tokens,
            input_budget=max(1, limits.step_tokens - len(running)),
        )

    def _releases(self, running: list[_Running], now: float) -> Releases:
        """When slots will be left. Of a large batch, a part stands for the whole."""
        forecast, limits = self.forecast, self.limits
        sample = running[:: max(1, len(running) // _LOOKS_AT)]
        forecast.lengths.look([made for one in sample if (made := self._made(one)) > 0])
        waiting = self.queue.ahead_of(URGENCIES - 1)
        if waiting.requests:
            held = waiting.answer_tokens / waiting.requests
            held += ceil(waiting.input_tokens / waiting.requests / limits.chunk_tokens)
        else:
            held = 1 + forecast.lengths.expected(_ANY_LIMIT)
        step_s = forecast.decode_s(limits.slots)
        ends = []
        for one in sample:
            entry, made = one.entry, self._made(one)
            input_steps = ceil((entry.input_tokens - one.taken) / limits.chunk_tokens)
            most = (entry.deadline_s - now) / step_s if step_s > 0 else inf
            for share in _SHARES:
                left = input_steps + forecast.lengths.within(share, entry.limit_tokens, made)
                ends.append(max(0.0, min(left, most)))
        ends += [held * share for share in _SHARES for _ in range(self._unused)]
        slots = len(running) + self._unused
        weight = slots / len(ends) if ends else 0.0
        return Releases(ends, weight, held, forecast.lengths.variation)

    def _unserved(self, entry: Entry, now: float) -> None:
        """It leaves without a first token, after all that it was promised."""
        if now - entry.since_s > entry.promised_s:
            self.forecast.came(entry.promised_s, now - entry.since_s)

    def _expire_running(self, now: float) -> tuple[int, ...]:
        late = tuple(i for i, r in self._running.items() if r.entry.deadline_s <= now)
        for entry_id in late:
            self._leave(entry_id, whole=False)
        return late

    def _admit(self, now: float) -> tuple[Admitted, ...]:
        admitted = []
        while self._free and (entry := self.queue.pop(now)) is not None:
            slot = heapq.heappop(self._free)
            self._running[entry.id] = _Running(entry, slot)
            self._scene = None
            self.forecast.placed(entry.urgency)
            admitted.append(Admitted(entry.id, slot))
        return tuple(admitted)

    def _chunks(self, budget: int) -> tuple[Chunk, ...]:
        self._beginning = []
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
            if running.decodes:
                self._beginning.append(running)
            budget -= count
        return tuple(chunks)
