"""The core's heart: requests in, answers out, whatever the ingress and the engine."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from math import ceil
from random import Random

from msgspec.structs import replace

from region_core.answers import Answers
from region_core.engine.base import Engine, FinishReason
from region_core.engine.sim import SimEngine
from region_core.errors import Refused
from region_core.instant import answer_at_once
from region_core.job import (
    Failed,
    Job,
    Sink,
    Ticket,
    above_level,
    draining,
    foreseen,
    overloaded,
    too_late,
)
from region_core.prepare import Offer, Prepared, prepare
from region_core.rate import Rate
from region_core.report import Counters, LoadReport, StepFigures
from region_core.runner import Event, Progress, Runner
from region_core.scheduling.admission import Refusal, retry_after_s
from region_core.scheduling.batcher import Limits
from region_core.scheduling.forecast import Ask, Estimate, Forecast
from region_core.scheduling.level import Level, Moment
from runtime import logs
from runtime.clock import Clock
from topology.cursor import ALL_ADMITTED, tier_of
from topology.fair_queue import QueueFull

log = logs.get("service")

INLINE_CHARACTERS = 16_384  # of messages; longer ones are tokenised off the loop (2 ms of it)


class _Ticket:
    """One request under way. Everything happens on the event loop."""

    __slots__ = ("_service", "accepted", "done", "id", "job", "sink")

    def __init__(self, service: CoreService, entry_id: int, job: Job, sink: Sink) -> None:
        self._service = service
        self.id = entry_id
        self.job = job
        self.sink = sink
        self.done = False

    def cancel(self) -> None:
        if not self.done:
            self._service.cancelled(self)


class _Nobody:
    """Where the answer goes that is made for a client that left: `protect` is off."""

    def accepted(self, queue_ms: float, load: float) -> None: ...

    def tokens(self, position: int, ids: tuple[int, ...], text: str) -> None: ...

    def end(
        self,
        finish_reason: FinishReason,
        prompt_tokens: int,
        completion_tokens: int,
        age_s: float | None = None,
    ) -> None: ...

    def failed(self, failed: Failed) -> None: ...


_NOBODY = _Nobody()
_NEVER_S = 1e15  # a deadline that never comes
_ANY = 3  # the urgency of all, where nobody is protected
_AT_ONCE = Estimate(0.0, 0.0, 0.0, 0.0, 0.0)


class _Over:
    """The ticket of a request that was over before `submit` returned."""

    def cancel(self) -> None:
        """There is nothing left to stop."""


_OVER = _Over()


class CoreService:
    """Joins queue, batcher and engine. Use within one event loop: `start`, `submit`, `drain`.

    `queue_target_s`: how long requests may wait before some are refused by level; None: as long as
    they like. `protect` False: one queue in the order of arrival, whoever asks, however late it is,
    and work for clients that left is done to its end: for comparison alone.
    """

    def __init__(
        self,
        engine: Engine,
        offer: Offer,
        limits: Limits,
        clock: Clock,
        rng: Random | None = None,
        *,
        queue_target_s: float | None = None,
        protect: bool = True,
    ) -> None:
        if not protect:
            limits = replace(limits, preemptions=0)
            log.warning("this core protects nobody: `scheduling.protect` is off")
        self.engine = engine
        self.offer = offer
        self.counters = Counters()
        self.answers: Answers | None = None
        self._limits = limits
        self._clock = clock
        self._rng = rng or Random()
        self._loop = asyncio.get_running_loop()
        self._instant = engine if isinstance(engine, SimEngine) and engine.instant else None
        self._runner = Runner(engine, limits, clock, self._from_engine)
        self._protect = protect
        self._level: Level | None = None
        if protect and queue_target_s is not None:
            self._level = Level(queue_target_s, limits.slots, limits.waiting, clock.now())
        self._tickets: dict[int, _Ticket] = {}
        self._last_id = 0
        self._draining = False
        self._idle: asyncio.Event | None = None
        self._tokens = Rate()
        self._requests = Rate()
        self._preparing = 0
        self._tokenisers = ThreadPoolExecutor(1, thread_name_prefix="tokenise")

    def start(self) -> None:
        if self._instant is None:
            self._runner.start()

    @property
    def load(self) -> float:
        return self._runner.load

    @property
    def healthy(self) -> bool:
        return self._instant is not None or self._runner.healthy

    @property
    def stalled(self) -> bool:
        """It answers whoever asks, and gets nowhere with its work: it should get no more."""
        return self._instant is None and self._runner.stalled

    @property
    def ready(self) -> bool:
        return self.healthy and not self._draining

    @property
    def steps(self) -> StepFigures:
        return self._runner.figures

    @property
    def forecast(self) -> Forecast:
        """What has been learnt of the engine and its work; to be read only."""
        return self._runner.forecast

    @property
    def level(self) -> int:
        """Requests whose cursor is below it are admitted (`topology.cursor`)."""
        return ALL_ADMITTED if self._level is None else self._set(self._level)

    def aim(self, queue_target_s: float) -> None:
        """How long requests may wait, where the level is in use."""
        if self._level is not None:
            self._level.aim(queue_target_s)

    @property
    def preemptions(self) -> int:
        return self._runner.preemptions

    @property
    def waiting_by_urgency(self) -> tuple[int, ...]:
        return self._runner.waiting_by_urgency

    def report(self) -> LoadReport:
        now = self._clock.now()
        return LoadReport(
            running=self._runner.running,
            waiting=self._runner.waiting + self._preparing,
            slots=self._limits.slots,
            waiting_limit=self._limits.waiting,
            tokens_per_s=self._tokens.per_s(now),
            requests_per_s=self._requests.per_s(now),
            load=self.load,
            draining=self._draining,
            healthy=self.healthy,
            stalled=self.stalled,
        )

    def submit(self, job: Job, sink: Sink) -> Ticket:
        """Answer a request from what is there, take it on, or tell the sink why not. Never raises
        for what a client did."""
        if self.answers is not None:
            return self.answers.submit(job, sink, self.take_on)
        return self.take_on(job, sink)

    def take_on(self, job: Job, sink: Sink) -> Ticket:
        """As `submit`, whatever is there already."""
        if self._draining:
            self._refuse(sink, draining())
            return _OVER
        try:
            if self._instant is not None:
                answer_at_once(self._instant, self.offer, job, sink, self.counters)
                return _OVER
            size = sum(len(message.content) for message in job.request.messages)
            refused = self._shed(job, size)  # in a storm most are: before tokenising
            if refused is not None:
                self._refuse(sink, refused)
                return _OVER
            self._last_id += 1
            ticket = _Ticket(self, self._last_id, job, sink)
            if size > INLINE_CHARACTERS:
                self._prepare_aside(ticket)
            else:
                self._enqueue(ticket, prepare(job, self.engine.tokenizer, self.offer))
        except Refused as error:
            self._refuse(sink, Failed.of(error))
            return _OVER
        return ticket

    async def drain(self, grace_s: float) -> None:
        """Take nothing on; let what is under way finish for `grace_s`, fail the rest, stop."""
        self._draining = True
        if self._tickets:
            self._idle = asyncio.Event()
            try:
                await asyncio.wait_for(self._idle.wait(), grace_s)
            except TimeoutError:
                log.warning("requests cut off by the shutdown", count=len(self._tickets))
        for ticket in list(self._tickets.values()):
            self._runner.cancel(ticket.id)
            self._fail(ticket, draining())
        self._tokenisers.shutdown(wait=False, cancel_futures=True)
        if self._instant is None and not await self._loop.run_in_executor(
            None, self._runner.close, max(grace_s, 5.0)
        ):
            log.warning("the engine's thread did not stop in time")

    def cancelled(self, ticket: _Ticket) -> None:
        """The client gave up."""
        self.counters.cancelled += 1
        if not self._protect:
            ticket.sink = _NOBODY
            return
        self._done(ticket)
        self._runner.cancel(ticket.id)

    # Taking on

    def _prepare_aside(self, ticket: _Ticket) -> None:
        if self._preparing >= max(1, self._limits.waiting):
            self._refuse(ticket.sink, self._full(0.0))
            ticket.done = True
            return
        self._preparing += 1
        self._tickets[ticket.id] = ticket
        future = self._tokenisers.submit(prepare, ticket.job, self.engine.tokenizer, self.offer)
        future.add_done_callback(
            lambda done: self._loop.call_soon_threadsafe(self._prepared, ticket, done)
        )

    def _prepared(self, ticket: _Ticket, done: Future[Prepared]) -> None:
        self._preparing -= 1
        if ticket.done or done.cancelled():
            return
        del self._tickets[ticket.id]
        try:
            self._enqueue(ticket, done.result())
        except Refused as error:
            self._refuse(ticket.sink, Failed.of(error))
            ticket.done = True
            self._check_idle()

    def _enqueue(self, ticket: _Ticket, prepared: Prepared) -> None:
        job = ticket.job
        if prepared.finished is not None:
            self._finish_resumed(ticket, prepared)
            return
        size = len(prepared.prompt) + len(prepared.answer)
        limit = prepared.max_tokens - len(prepared.answer)
        ask = Ask(job.urgency, job.tenant, size, limit, bool(job.resume), job.weight)
        deadline_s, estimate, refusal = job.deadline_s, _AT_ONCE, None
        if self._protect:
            estimate, refusal = self._runner.foresee(ask, deadline_s)
        else:
            ask, deadline_s = replace(ask, urgency=_ANY, tenant="", weight=1.0), _NEVER_S
        if refusal is not None:
            self._turn_away(ticket, self._foreseen(refusal))
            return
        try:
            displaced = self._runner.submit(ticket.id, ask, deadline_s, prepared, estimate)
        except QueueFull:
            self._turn_away(ticket, self._full(estimate.wait_s))
            return
        self._tickets[ticket.id] = ticket
        if displaced is not None:
            self._fail(self._tickets[displaced], self._full(estimate.wait_s, "displaced"))
        self.counters.accepted += 1
        self.counters.prompt_tokens += len(prepared.prompt)
        self._requests.add(1, self._clock.now())
        ticket.sink.accepted(estimate.wait_s * 1000, self.load)

    def _finish_resumed(self, ticket: _Ticket, prepared: Prepared) -> None:
        """What the client has is the whole answer: only the end of it was lost."""
        assert prepared.finished is not None
        ticket.done = True
        self.counters.accepted += 1
        self.counters.finished[prepared.finished] += 1
        ticket.sink.accepted(0.0, self.load)
        held = prepared.detokeniser.finish()
        if held:
            ticket.sink.tokens(len(prepared.answer), (), held)
        ticket.sink.end(prepared.finished, len(prepared.prompt), len(prepared.answer))
        self._check_idle()

    # Refusing

    def _shed(self, job: Job, size: int) -> Failed | None:
        """Why a request is refused before it costs anything; `size` is in characters."""
        if not self._protect:
            return None if self._runner.has_room(_ANY, "") else self._full(0.0)
        if self._level is not None and not self._admits(self._level, job):
            return self._above(self._level, job)
        return self._foresee_refusal(job, size)

    def _admits(self, level: Level, job: Job) -> bool:
        self._set(level)
        level.came(job.cursor)
        if job.resume or job.cursor < level.value:
            return True
        runner = self._runner
        return level.admits(job.cursor, job.urgency, runner.waiting_by_urgency, runner.unused)

    def _set(self, level: Level) -> int:
        now, runner = self._clock.now(), self._runner
        if level.due(now):
            waiting, places = runner.waiting_by_urgency, runner.places_per_s()
            level.review(Moment(waiting, runner.unused, places), now)
        return level.value

    def _above(self, level: Level, job: Job) -> Failed:
        shed, tier = self.counters.shed, tier_of(job.urgency)
        shed[tier] = shed.get(tier, 0) + 1
        wait_s = level.wait_s(self._runner.waiting)
        return above_level(self._retry_after_ms(level.retry_s), wait_s * 1000)

    def _foresee_refusal(self, job: Job, size: int) -> Failed | None:
        """Its input is taken to be as short as it can be: `_enqueue` asks again with its tokens."""
        least = size // self.engine.tokenizer.longest_token_bytes + len(job.resume)
        limit = job.request.max_tokens or self.offer.default_output_tokens
        limit = max(1, limit - len(job.resume))
        ask = Ask(job.urgency, job.tenant, least, limit, bool(job.resume))
        estimate, refusal = self._runner.foresee(ask, job.deadline_s)
        if refusal is not None:
            return self._foreseen(refusal)
        if not self._runner.has_room(job.urgency, job.tenant):
            return self._full(estimate.wait_s)
        return None

    def _foreseen(self, refusal: Refusal) -> Failed:
        if refusal.left_s <= 0:
            return too_late()
        return foreseen(refusal, self._retry_after_ms(refusal.drain_s), refusal.drain_s * 1000)

    def _full(self, wait_s: float, cause: str = "full") -> Failed:
        retry_after_ms = self._retry_after_ms(wait_s)
        return overloaded(self._runner.waiting, retry_after_ms, wait_s * 1000, cause)

    def _retry_after_ms(self, drain_s: float) -> int:
        return ceil(1000 * retry_after_s(drain_s, self._rng.random()))

    def _turn_away(self, ticket: _Ticket, failed: Failed) -> None:
        ticket.done = True
        self._refuse(ticket.sink, failed)
        self._check_idle()

    # Handing out

    def _from_engine(self, events: list[Event]) -> None:
        """In the engine's thread: one call to the loop for all that a step brought."""
        try:
            self._loop.call_soon_threadsafe(self._hand_out, events)
        except RuntimeError:  # the loop is closed: nobody is there to be told
            log.debug("events after the end", count=len(events))

    def _hand_out(self, events: list[Event]) -> None:
        count = 0
        for event in events:
            ticket = self._tickets.get(event.id)
            if ticket is None:
                continue  # cancelled meanwhile
            if isinstance(event, Progress):
                count += len(event.piece.ids)
                self._progress(ticket, event)
            else:
                self._fail(ticket, event.failed)
        if count:
            self.counters.completion_tokens += count
            self._tokens.add(count, self._clock.now())

    def _progress(self, ticket: _Ticket, event: Progress) -> None:
        piece = event.piece
        if piece.finish is not None:
            self.counters.finished[piece.finish] += 1
            self._done(ticket)
        try:
            if not piece.empty:
                ticket.sink.tokens(piece.position, piece.ids, piece.text)
            if piece.finish is not None:
                ticket.sink.end(piece.finish, event.prompt_tokens, event.completion_tokens)
        except Exception:  # a request's outermost edge: the others of the step go on
            log.exception("an answer could not be handed out", request_id=ticket.job.request_id)
            self.counters.sink_errors += 1
            ticket.cancel()

    def _fail(self, ticket: _Ticket, failed: Failed) -> None:
        self._done(ticket)
        self._refuse(ticket.sink, failed)

    def _refuse(self, sink: Sink, failed: Failed) -> None:
        counters = self.counters
        counters.failed[failed.code] = counters.failed.get(failed.code, 0) + 1
        if failed.cause is not None:
            counters.overloads[failed.cause] = counters.overloads.get(failed.cause, 0) + 1
        sink.failed(failed)

    def _done(self, ticket: _Ticket) -> None:
        ticket.done = True
        self._tickets.pop(ticket.id, None)
        self._check_idle()

    def _check_idle(self) -> None:
        if self._idle is not None and not self._tickets:
            self._idle.set()
