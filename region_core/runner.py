"""The engine's thread: plan, step, hand over; again.

The thread waits for the engine, which for a model is a process (engine/process.py says why), so
the event loop never does. What one step brings reaches the event loop in one call. Only the
batcher and the table of arrivals are shared between the threads, under one lock that is held
for microseconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from msgspec import Struct

from region_core.answer import Answer, Piece
from region_core.engine.base import Begin, Engine
from region_core.errors import EngineFault
from region_core.job import Failed, engine_fault, given_up, too_late
from region_core.prepare import Prepared
from region_core.report import StepFigures
from region_core.scheduling.admission import Refusal
from region_core.scheduling.batcher import Admitted, Batcher, Limits, Plan
from region_core.scheduling.forecast import Ask, Estimate, Forecast
from region_core.stall import StallWatch
from runtime import logs
from runtime.clock import Clock
from topology.fair_queue import QueueFull

log = logs.get("runner")

_UNHEALTHY_FAULTS = 3  # steps in a row that failed


class Progress(Struct, frozen=True, gc=False):
    """A piece of an answer; the counters are of the whole answer so far."""

    id: int
    piece: Piece
    prompt_tokens: int
    completion_tokens: int


class Lost(Struct, frozen=True):
    """A request that ends without its answer."""

    id: int
    failed: Failed


Event = Progress | Lost


class _Active(Struct):
    """One that has had a slot. `made`: its answer's tokens, those that its client had included."""

    id: int
    prepared: Prepared
    answer: Answer
    made: list[int]


class Runner:
    """Owns the engine. `deliver` is called in the engine's thread with one step's events."""

    def __init__(
        self, engine: Engine, limits: Limits, clock: Clock, deliver: Callable[[list[Event]], None]
    ) -> None:
        self.figures = StepFigures()
        self._engine = engine
        self._clock = clock
        self._deliver = deliver
        self._batcher = Batcher(limits)
        self._changed = threading.Condition()
        self._arrivals: dict[int, Prepared | _Active] = {}  # they wait
        self._closing = False
        self._active: dict[int, _Active] = {}  # by slot; the thread's own
        self._faults_in_a_row = 0
        self._stall = StallWatch(clock.now())
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    # On the event loop

    @property
    def running(self) -> int:
        return self._batcher.running

    @property
    def waiting(self) -> int:
        return self._batcher.waiting

    @property
    def load(self) -> float:
        return self._batcher.load

    @property
    def healthy(self) -> bool:
        return self._faults_in_a_row < _UNHEALTHY_FAULTS and self._thread.is_alive()

    @property
    def stalled(self) -> bool:
        """It has work and gets nowhere with it. A look without the lock."""
        return not self._batcher.idle and self._stall.stalled(self._clock.now())

    @property
    def forecast(self) -> Forecast:
        """What has been learnt; to be read only."""
        return self._batcher.forecast

    @property
    def waiting_by_urgency(self) -> tuple[int, ...]:
        return self._batcher.queue.waiting()

    @property
    def unused(self) -> int:
        """Slots that nobody runs in; a look without the lock."""
        return self._batcher.unused

    @property
    def preemptions(self) -> int:
        return self._batcher.preemptions

    def places_per_s(self) -> float:
        """How many slots are left in a second while all are in use; 0 while that is unknown."""
        with self._changed:  # the engine's thread learns how long answers are meanwhile
            return self._batcher.places_per_s()

    def has_room(self, urgency: int, tenant: str) -> bool:
        """Whether `submit` would take a request; a look without the lock, so only a hint."""
        return self._batcher.has_room(urgency, tenant)

    def foresee(self, ask: Ask, deadline_s: float) -> tuple[Estimate, Refusal | None]:
        """What a request has to expect, and why it is not taken on, if it is not."""
        with self._changed:
            return self._batcher.foresee(ask, deadline_s, self._clock.now())

    def start(self) -> None:
        self._thread.start()

    def submit(
        self, entry_id: int, ask: Ask, deadline_s: float, prepared: Prepared, estimate: Estimate
    ) -> int | None:
        """Let a request wait. Returns the id that lost its place to it, if one did.

        Raises `QueueFull`.
        """
        with self._changed:
            now = self._clock.now()
            if self._batcher.idle:
                self._stall.woken(now)
            displaced = self._batcher.submit(
                self._batcher.entry(entry_id, ask, deadline_s, estimate, now)
            )
            self._arrivals[entry_id] = prepared
            if displaced is not None:
                del self._arrivals[displaced.id]
            self._changed.notify()
        return displaced.id if displaced is not None else None

    def cancel(self, entry_id: int) -> None:
        with self._changed:
            self._batcher.cancel(entry_id)
            self._arrivals.pop(entry_id, None)
            self._changed.notify()

    def close(self, timeout_s: float) -> bool:
        """Stop after the step under way. False when the thread did not end in time."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # In the engine's thread

    def _main(self) -> None:
        while (work := self._next()) is not None:
            plan, arrived = work
            events = self._execute(plan, arrived)
            if events:
                self._deliver(events)
        self._engine.close()

    def _next(self) -> tuple[Plan, dict[int, Prepared | _Active]] | None:
        with self._changed:
            while not self._closing and self._batcher.idle:
                self._changed.wait()
            if self._closing:
                return None
            plan = self._batcher.plan(self._clock.now())
            for one in plan.preempted:
                self._arrivals[one.id] = self._active.pop(one.slot)
            arrived = {a.id: self._arrivals.pop(a.id) for a in plan.admitted}
            for entry_id in (*plan.expired, *plan.given_up):
                self._arrivals.pop(entry_id, None)
            return plan, arrived

    def _execute(self, plan: Plan, arrived: dict[int, Prepared | _Active]) -> list[Event]:
        events: list[Event] = [Lost(entry_id, too_late()) for entry_id in plan.expired]
        events += [Lost(entry_id, given_up()) for entry_id in plan.given_up]
        for slot in plan.released:
            self._engine.release(slot)
            self._active.pop(slot, None)
        for admitted in plan.admitted:
            self._begin(admitted, arrived[admitted.id])
        if not plan.step.empty:
            events += self._step(plan)
        return events

    def _begin(self, admitted: Admitted, arrived: Prepared | _Active) -> None:
        """For the first time, or again with what it has made as input: its `Answer` knows what
        was handed out."""
        if isinstance(arrived, Prepared):
            answer = Answer(arrived, self._engine.tokenizer)
            arrived = _Active(admitted.id, arrived, answer, list(arrived.answer))
        prepared, made = arrived.prepared, tuple(arrived.made)
        self._engine.begin(Begin(admitted.slot, prepared.prompt, made, prepared.sampling))
        self._active[admitted.slot] = arrived

    def _step(self, plan: Plan) -> list[Event]:
        started = self._clock.now()
        try:
            tokens = self._timed(plan, started)
        except EngineFault as error:
            log.error("a step failed", error=str(error))
            return self._lose_all(engine_fault(error.message))
        except Exception:  # the thread's outermost edge: it must outlive a bug in the engine
            log.exception("a step failed in a way that the engine did not foresee")
            return self._lose_all(engine_fault("an internal error"))
        now = self._clock.now()
        self._faults_in_a_row = 0
        figures = self.figures
        figures.steps += 1
        figures.busy_s += now - started
        figures.tokens += plan.step.tokens
        figures.largest_batch = max(figures.largest_batch, len(plan.step.decodes))
        events: list[Event] = []
        finished = []
        for slot, token in tokens.items():
            active = self._active[slot]
            active.made.append(token)
            piece = active.answer.take(token)
            answer = active.answer
            events.append(
                Progress(active.id, piece, answer.prompt_tokens, answer.completion_tokens)
            )
            if piece.finish is not None:
                finished.append((active.id, piece.finish == "stop"))
        with self._changed:
            self._batcher.ran(plan.step, now - started, now)
            for entry_id, whole in finished:
                self._batcher.finish(entry_id, whole)
        return events

    def _timed(self, plan: Plan, started: float) -> Mapping[int, int]:
        try:
            return self._engine.step(plan.step)
        finally:
            now = self._clock.now()
            self._stall.stepped(now, now - started)

    def _lose_all(self, failed: Failed) -> list[Event]:
        self.figures.faults += 1
        self._faults_in_a_row += 1
        ids = [active.id for active in self._active.values()]
        with self._changed:
            for entry_id in ids:
                self._batcher.finish(entry_id)
        return [Lost(entry_id, failed) for entry_id in ids]


__all__ = ["Event", "Lost", "Progress", "QueueFull", "Runner"]
