"""Continuous batching: who joins the next step, who leaves, and what the step computes.

Each step decodes one token for every sequence whose input is taken in, and spends what is
left of the token budget on input: of those that were admitted first, most urgent first, in
chunks, so that a long prompt delays the others by no more than one chunk. A sequence keeps its
slot to its end, unless a VIP needs it (preemption.py): then it waits again, before all others of
its tenant, with what it has made as part of its input.

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
from msgspec.structs import replace

from region_core.scheduling.admission import Refusal, refusal, useful_s
from region_core.scheduling.forecast import Ask, Estimate, Forecast, Scene
from region_core.scheduling.plan import Chunk, Step
from region_core.scheduling.preemption import PAUSED, VIP, Claim, Preemption, Victim
from region_core.scheduling.releases import Releases
from topology.fair_queue import URGENCIES, Entry, PriorityQueue

_LOOKS_AT = 64  # sequences, of those that run
_SHARES = (1 / 8, 3 / 8, 5 / 8, 7 / 8)  # of cases: how many more tokens an answer has
_ANY_LIMIT = 1 << 30
_HANGS = 3.0  # times as long as expected
_SCENE_S = 0.05  # how long a view of the batch is good for, if nobody comes or leaves
_HELD_WEIGHT = 1 / 32  # of the last sequence, in how long a slot is held


class Limits(Struct, frozen=True):
    """How much a step, and the waiting room, may hold."""

    slots: int
    step_tokens: int  # through the model in one step; decodes come first
    chunk_tokens: int  # of one sequence's input in one step
    waiting: int
    preemptions: int = 2  # times that one sequence gives its slot to a VIP, at most


class Admitted(Struct, frozen=True):
    """A sequence got a slot."""

    id: int
    slot: int


class Preempted(Struct, frozen=True):
    """A sequence gave up its slot, and waits again: its input is now `input_tokens`."""

    id: int
    slot: int
    input_tokens: int


class Plan(Struct, frozen=True):
    """What to do now, in this order: expire, preempt, release, admit, run the step."""

    expired: tuple[int, ...]  # ids whose deadline came, waiting or running
    given_up: tuple[int, ...]  # that waited, and can no longer be answered in time
    released: tuple[int, ...]  # slots whose sequence has gone; some have a new one already
    admitted: tuple[Admitted, ...]
    step: Step
    preempted: tuple[Preempted, ...] = ()

    @property
    def empty(self) -> bool:
        return self.step.empty and not (
            self.expired or self.given_up or self.released or self.admitted
        )


class _Running:
    __slots__ = ("before", "began", "entry", "floored", "joined", "slot", "taken", "times")

    def __init__(self, entry: Entry, slot: int, joined: int, floored: bool) -> None:
        self.entry = entry
        self.slot = slot
        self.joined = joined  # the step
        self.floored = floored  # it has the place that its level's floor gave it
        self.taken = 0  # input tokens that are in the cache
        self.began = -1  # the step that samples its first token in this slot
        self.before = 0  # tokens of its answer that it made in other slots
        self.times = 0  # that it gave up a slot

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
        self._paused: dict[int, _Running] = {}  # by id: they gave up their slots, and wait
        self._paused_most = ceil(limits.slots * PAUSED)
        self._preemption = Preemption(limits.preemptions)
        self._held_steps = 0.0  # by sequences that left lately; 0: by none yet
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

    @property
    def unused(self) -> int:
        """Slots that nobody runs in."""
        return len(self._free) + len(self._released)

    @property
    def preemptions(self) -> int:
        """How often a sequence gave up its slot."""
        return self._preemption.count

    def places_per_s(self) -> float:
        """How many slots are left in a second while all are in use; 0 while that is unknown."""
        forecast, slots = self.forecast, self.limits.slots
        step_s = forecast.decode_s(slots)
        if not forecast.steps.known or step_s <= 0:
            return 0.0
        held = self._held_steps or 1 + forecast.lengths.expected(_ANY_LIMIT)
        return slots / (held * step_s)

    def has_room(self, urgency: int, tenant: str = "") -> bool:
        """Whether `submit` would take a request of this urgency and tenant."""
        return self.queue.has_room(urgency, self.unused, tenant)

    def submit(self, entry: Entry) -> Entry | None:
        """Let a request wait; returns whoever lost its place, or raises `QueueFull`.

        Those that find a free slot do not count as waiting: with no room to wait at all, there
        is still room to run.
        """
        displaced = self.queue.push(entry, self.unused)
        if displaced is not None:
            self._unserved(displaced, entry.since_s)
        return displaced

    def foresee(self, ask: Ask, deadline_s: float, now: float) -> tuple[Estimate, Refusal | None]:
        """What a newcomer would have to expect, and why it should not be taken on, if so."""
        ahead, scene = self.queue.ahead_of(ask.urgency, ask.tenant), self._view(now)
        if ask.urgency <= VIP and ahead.requests >= scene.free and scene.running:
            scene = replace(scene, free=scene.free + self._takeable(now))
        estimate = self.forecast.estimate(ask, ahead, scene, self._hangs_s(now))
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
            weight=ask.weight,
            since_s=now,
            promised_s=estimate.first_token_s if estimate.wait_s > 0 else 0.0,
            useful_s=None if ask.resumed else useful_s(estimate, deadline_s),
        )

    def cancel(self, entry_id: int) -> bool:
        """Drop a request, waiting or running; its slot is free in the next plan."""
        if not self.queue.cancel(entry_id):
            return self._leave(entry_id, whole=False)
        self._forget(entry_id)
        return True

    def ran(self, step: Step, took_s: float, now: float) -> None:
        """The step that was planned last ended well, `now`."""
        self._ends_s = inf
        self.forecast.stepped(step, took_s)
        for running in self._beginning:
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
        late: list[int] = []  # of those that would have got a slot
        expired += self._expire_running(now)
        released, self._released = tuple(self._released), []
        for slot in released:
            heapq.heappush(self._free, slot)
        preempted: list[Preempted] = []
        admitted = self._admit(now, preempted, late)
        released += tuple(one.slot for one in preempted)
        self._steps += 1
        decodes = tuple(sorted(r.slot for r in self._running.values() if r.decodes))
        chunks = self._chunks(self.limits.step_tokens - len(decodes))
        step = Step(chunks, decodes)
        self._ends_s = inf if step.empty else now + _HANGS * self.forecast.expected_s(step)
        expired += tuple(late)
        return Plan(expired, given_up, released, admitted, step, tuple(preempted))

    def _leave(self, entry_id: int, whole: bool | None) -> bool:
        running = self._running.pop(entry_id, None)
        if running is None:
            return False
        self._released.append(running.slot)
        self._scene = None
        held = max(1, self._steps - running.joined)
        self._held_steps += (held - self._held_steps) * (_HELD_WEIGHT if self._held_steps else 1.0)
        if (made := self._made(running)) and whole is not None:
            self.forecast.lengths.ended(made, whole)
        return True

    def _forget(self, entry_id: int) -> None:
        """One that waits for a second slot does so no more."""
        paused = self._paused.pop(entry_id, None)
        if paused is not None and paused.before:
            self.forecast.lengths.ended(paused.before, False)

    def _hangs_s(self, now: float) -> float:
        return max(0.0, now - self._ends_s)

    def _made(self, running: _Running) -> int:
        """Tokens of its answer."""
        here = self._steps - running.began + 1 if running.began >= 0 else 0
        return running.before + here

    def _view(self, now: float) -> Scene:
        """The batch as it is; looked at anew when somebody came or left, or after a while."""
        if self._scene is None or now - self._scene_s > _SCENE_S:
            self._scene, self._scene_s = self._look(now), now
        return self._scene

    def _look(self, now: float) -> Scene:
        limits, running = self.limits, list(self._running.values())
        return Scene(
            slots=limits.slots,
            free=self.unused,
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
        ends += [held * share for share in _SHARES for _ in range(self.unused)]
        slots = len(running) + self.unused
        weight = slots / len(ends) if ends else 0.0
        return Releases(ends, weight, held, forecast.lengths.variation)

    def _unserved(self, entry: Entry, now: float) -> None:
        """It leaves without a first token, after all that it was promised."""
        self._forget(entry.id)
        if now - entry.since_s > entry.promised_s:
            self.forecast.came(entry.promised_s, now - entry.since_s)

    def _expire_running(self, now: float) -> tuple[int, ...]:
        late = tuple(i for i, r in self._running.items() if r.entry.deadline_s <= now)
        for entry_id in late:
            self._leave(entry_id, whole=False)
        return late

    def _admit(
        self, now: float, preempted: list[Preempted], late: list[int]
    ) -> tuple[Admitted, ...]:
        admitted = []
        while (self._free or self._preempts(now, preempted)) and (entry := self.queue.pop(now)):
            if self._running and entry.deadline_s - now <= self._input_s(entry):
                self._unserved(entry, now)
                late.append(entry.id)
                continue
            slot = heapq.heappop(self._free)
            floored = entry.urgency > VIP and any(self.queue.waiting()[: entry.urgency])
            running = self._running[entry.id] = _Running(entry, slot, self._steps, floored)
            paused = self._paused.pop(entry.id, None)
            if paused is not None:
                running.before, running.times = paused.before, paused.times
            self._scene = None
            self.forecast.placed(entry.urgency)
            admitted.append(Admitted(entry.id, slot))
        return tuple(admitted)

    def _input_s(self, entry: Entry) -> float:
        """The least that it takes until its first token."""
        steps = self.forecast.steps
        return entry.input_tokens * steps.token_s + steps.seconds(1)

    def _takeable(self, now: float) -> int:
        """Slots that VIPs could take from others."""
        room = self._paused_most - len(self._paused)
        if room <= 0 or not self.limits.preemptions:
            return 0
        victims = (self._victim(running) for running in self._running.values())
        return min(room, self._preemption.slots(victims, self.forecast.steps.token_s, now))

    def _preempts(self, now: float, preempted: list[Preempted]) -> bool:
        """Take a slot from one that runs, if the next that waits is a VIP, and may."""
        if not self.limits.preemptions:
            return False
        entry = self.queue.peek(now)
        if entry is None or entry.urgency > VIP or len(self._paused) >= self._paused_most:
            return False
        steps, before = self.forecast.steps, len(preempted)
        wait_s = self._view(now).releases.steps_until(before + 1) * steps.seconds(self.limits.slots)
        claim = Claim(now - entry.since_s, wait_s if steps.known else inf)
        victims = (self._victim(running) for running in self._running.values())
        victim = self._preemption.choose(claim, victims, steps.token_s, now)
        if victim is None:
            return False
        preempted.append(self._give_up(self._running.pop(victim.id), now))
        return True

    def _victim(self, running: _Running) -> Victim:
        entry, made = running.entry, self._made(running)
        tokens = running.taken + made - running.before
        spared = running.floored or entry.limit_tokens - made <= 1
        return Victim(entry.id, entry.urgency, running.times, tokens, spared)

    def _give_up(self, running: _Running, now: float) -> Preempted:
        entry, made = running.entry, self._made(running)
        size = entry.input_tokens + made - running.before
        expected = self.forecast.lengths.expected(entry.limit_tokens, made)
        self.queue.put_back(
            replace(
                entry,
                input_tokens=size,
                answer_tokens=expected,
                promised_s=entry.promised_s if not made else 0.0,
                useful_s=None,
            )
        )
        running.before, running.times = made, running.times + 1
        self._paused[entry.id] = running
        heapq.heappush(self._free, running.slot)
        self._scene = None
        return Preempted(entry.id, running.slot, size)

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
                running.began = self._steps
                self._beginning.append(running)
            budget -= count
        return tuple(chunks)
