"""The core's heart: requests in, answers out, whatever the ingress and the engine."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random

from msgspec.structs import replace

from region_core.answers import Answers
from region_core.engine.base import Engine, FinishReason
from region_core.engine.sim import SimEngine
from region_core.errors import Refused
from region_core.instant import answer_at_once
from region_core.job import Failed, Job, Sink, Ticket, draining, too_late
from region_core.prepare import Offer, Prepared, prepare
from region_core.rate import Rate
from region_core.report import Counters, LoadReport, StepFigures
from region_core.runner import Event, Progress, Runner
from region_core.scheduling.batcher import Limits
from region_core.scheduling.forecast import Forecast
from region_core.scheduling.level import Level
from region_core.shedding import Shedding
from runtime import logs
from runtime.clock import Clock
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
        self._loop = asyncio.get_running_loop()
        self._instant = engine if isinstance(engine, SimEngine) and engine.instant else None
        self._runner = Runner(engine, limits, clock, self._from_engine)
        level = None
        if protect and queue_target_s is not None:
            level = Level(queue_target_s, limits.slots, limits.waiting, clock.now())
        rng = rng or Random()
        self.shedding = Shedding(self._runner, self.counters, clock, rng, level, protect)
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
        return self.shedding.level

    def aim(self, queue_target_s: float) -> None:
        """How long requests may wait, where the level is in use."""
        self.shedding.aim(queue_target_s)

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
            limit = job.request.max_tokens or self.offer.default_output_tokens
            least = size // self.engine.tokenizer.longest_token_bytes
            refused = self.shedding.refusal(job, least, limit)  # before tokenising
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
        if ticket.sink is _NOBODY:
            return
        self.counters.cancelled += 1
        if not self.shedding.protect:
            ticket.sink = _NOBODY
            return
        self._done(ticket)
        self._runner.cancel(ticket.id)

    # Taking on

    def _prepare_aside(self, ticket: _Ticket) -> None:
        if self._preparing >= max(1, self._limits.waiting):
            self._refuse(ticket.sink, self.shedding.full(0.0))
            ticket.done = True
            return
        self._preparing += 1
        self._tickets[ticket.id] = ticket
        future = self._tokenisers.submit(self._tokenised, ticket)
        future.add_done_callback(
            lambda done: self._loop.call_soon_threadsafe(self._prepared, ticket, done)
        )

    def _tokenised(self, ticket: _Ticket) -> Prepared | None:
        """In the tokeniser's thread; nothing for those who left, or are late, by their turn."""
        job = ticket.job
        if ticket.done or (self.shedding.protect and job.deadline_s <= self._clock.now()):
            return None
        return prepare(job, self.engine.tokenizer, self.offer)

    def _prepared(self, ticket: _Ticket, done: Future[Prepared | None]) -> None:
        self._preparing -= 1
        if ticket.done or done.cancelled():
            return
        del self._tickets[ticket.id]
        try:
            prepared = done.result()
            if prepared is None:
                self._turn_away(ticket, too_late("late"))
                return
            self._enqueue(ticket, prepared)
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
        ask, deadline_s = self.shedding.ask(job, size, limit)
        estimate, refused = self.shedding.foresee(ask, deadline_s)
        if refused is not None:
            self._turn_away(ticket, refused)
            return
        try:
            displaced = self._runner.submit(ticket.id, ask, deadline_s, prepared, estimate)
        except QueueFull:
            self._turn_away(ticket, self.shedding.full(estimate.wait_s))
            return
        self._tickets[ticket.id] = ticket
        if displaced is not None:
            self._fail(self._tickets[displaced], self.shedding.full(estimate.wait_s, "displaced"))
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
