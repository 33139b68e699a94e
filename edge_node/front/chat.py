"""POST /v1/chat/completions: from the cache, or through a region.

The order of steps is the order of cost. The key is checked before the body is read; an exact
repeat of a cached request is answered before it is parsed; a request that nobody may or can
serve is refused before anything is sent anywhere.
"""

from __future__ import annotations

import asyncio

from edge_node.admission.entry import Entry
from edge_node.admission.limiter import prompt_tokens
from edge_node.admission.once_more import OnceMore
from edge_node.cache.key import AnswerKey
from edge_node.errors import AttemptsExhausted, Refused
from edge_node.figures import Figures
from edge_node.forward.attempt import Ask
from edge_node.forward.attempts import Attempts
from edge_node.forward.forwarder import Forwarder
from edge_node.front import respond
from edge_node.front.asking import Asking
from edge_node.front.body import read
from edge_node.front.call import Call, ClientGone
from edge_node.front.lesser import Lesser, Order
from edge_node.front.recipient import Recipient
from edge_node.front.relay import Relay
from edge_node.front.reuse import Reuse, cache_control, spelling_of
from edge_node.front.revalidation import Revalidation
from edge_node.front.sharing import Sharing, repeat_of
from edge_node.front.unprotected import Unprotected
from edge_node.front.work import Work
from edge_node.inflight import Cause, Flight, Flights
from edge_node.models.base import EdgeModels
from edge_node.serving import Serving
from runtime.clock import Clock
from runtime.errors import TradewindError
from topology.routing import Decision
from topology.wire.chat import ChatRequest, parse_request


class Chat:
    """Serves one call at a time per task; shared by all tasks of the process."""

    def __init__(
        self,
        serving: Serving,
        forwarder: Forwarder,
        flights: Flights,
        figures: Figures,
        clock: Clock,
        entry: Entry,
        body_timeout_s: float,
    ) -> None:
        self._serving = serving
        self._forwarder = forwarder
        self._flights = flights
        self._figures = figures
        self._clock = clock
        self._body_timeout_s = body_timeout_s
        self._reuse = Reuse(serving, figures)
        self._entry = entry
        self.models = EdgeModels()
        self._once_more = OnceMore(entry, forwarder)
        self._lesser = Lesser(serving.edge, entry, self._reuse, self.models, clock)
        self.revalidation = Revalidation(
            serving, forwarder, self._entry, flights, figures, self._reuse, clock
        )
        self._reuse.ask_anew = self.revalidation.start
        self._asking = Asking(serving, forwarder, clock)
        self._relay = Relay(serving.edge, forwarder, figures, clock)
        self._unprotected = Unprotected(serving, forwarder, figures, self._relay)
        self.sharing = Sharing(forwarder.now, self._go_on)

    async def serve(self, call: Call) -> None:
        self._figures.requests += 1
        flight = self._flights.open(call.client, self._body_timeout_s, Cause.SLOW_BODY)
        try:
            await self._answer(call, flight)
        except (TradewindError, asyncio.CancelledError, ClientGone) as error:
            await self._tell(call, flight, error)
        finally:
            self._flights.close(flight)
            if call.successor is not None:  # granian takes the end of this task for the reply's
                await asyncio.wait((call.successor,))

    async def _tell(self, call: Call, flight: Flight, error: BaseException) -> None:
        """Where the client waits for it. What was done for one that has gone was given up on the
        way."""
        if isinstance(error, asyncio.CancelledError):
            if flight.cause is None:
                raise error
            if flight.cause is not Cause.DISCONNECT:
                await self._fail(call, respond.stopped(flight.cause))
        elif isinstance(error, TradewindError):
            await self._fail(call, error)

    async def _fail(self, call: Call, error: TradewindError) -> None:
        if call.handed_over:
            return
        told, order = respond.chat_error(error), call.order
        if order is not None and told.status >= 500 and call.stream is None:
            if await self._lesser.reply(call, order, self._forwarder.now()):
                return
            self._entry.gave(order.tier, "refused")
        replies = self._figures.replies
        replies[told.status] = replies.get(told.status, 0) + 1
        if call.stream is not None:
            self._figures.streams_broken += 1
        await call.fail(told)

    async def _answer(self, call: Call, flight: Flight) -> None:
        serving, headers = self._serving, call.headers
        serving.require_ready()
        tenant = serving.keyring.tenant(headers.get("authorization"))
        body = await read(call.client, headers.get("content-length"), serving.body_limit_bytes)
        if not serving.protects:
            await self._unprotected.answer(call, flight, tenant, body)
            return
        look, keep = cache_control(headers.get("cache-control"))
        spelling = spelling_of(tenant, body)
        now = self._forwarder.now()
        serving.quotas.admit(tenant, now)
        if look:
            ready = self._reuse.repeat(spelling, now)
            if ready is not None:
                call.reply(200, *ready)
                return
            if serving.failures.entries:
                self._reuse.check(spelling, now)
        request = parse_request(body)
        decision = serving.choice.decide(tenant, request.model)
        if decision.refusal not in ("", "no_region"):
            raise Refused(decision, tenant, request.model)
        flight.due(flight.started + call.deadline_s(serving.snapshot.tenants[tenant]))
        key = self._reuse.key(tenant, request) if keep else None
        if key is not None and look:
            found = self._reuse.find(key, spelling, request, body, now)
            if found is not None:
                call.reply(200, *found)
                return
        tier = serving.snapshot.tenants[tenant].tier
        call.order = order = Order(request, key if look else None, tier, flight.deadline)
        if self._lesser.first(tier) and await self._lesser.reply(call, order, now, standing=True):
            return
        ask = self._asking.of(call, tenant, request, body, look)
        work = None
        if look and self.sharing.on:
            repeat = repeat_of(call.given_id, spelling)
            if key is not None or repeat is not None:
                work = self.sharing.find(key, repeat)
                if work is not None:
                    await self._follow(call, flight, request, work)
                    return
                work = self.sharing.open(key, repeat, call, request, flight)
        try:
            await self._forward(call, flight, ask, request, decision, key, work)
        except AttemptsExhausted as error:
            if keep:
                self._reuse.note_failure(spelling, error, self._forwarder.now())
            raise

    async def _forward(
        self,
        call: Call,
        flight: Flight,
        ask: Ask,
        request: ChatRequest,
        decision: Decision,
        key: AnswerKey | None,
        work: Work | None,
    ) -> None:
        """Through a region; `key`: by which the answer is kept, where it may be. `work`: where
        others may share it."""
        quotas, used = self._serving.quotas, 0.0
        charged = quotas.charge(ask.tenant, ask.cost) if quotas.tokens else 0.0
        try:
            attempts = self._entry.at_once(ask, decision, flight)
            if attempts is None:
                attempts = await self._entry.admit(ask, decision, flight)
            if work is not None:
                work.attempts = attempts
            try:
                try:
                    answer = await self._relay.answer(call, flight, attempts, request, work)
                except AttemptsExhausted as error:
                    again = await self._again(ask, attempts, error, flight, work)
                    if again is None:
                        raise  # here: a frame that holds its own error is not let go of
                    attempts = again
                    answer = await self._relay.answer(call, flight, attempts, request, work)
                used = float(answer.usage.total_tokens)
            finally:
                attempts.close()
                used = used or prompt_tokens(len(ask.body)) + len(attempts.ids)
            self._figures.forwarded += 1
            if key is not None and not attempts.stands_in and not attempts.joined:
                self._reuse.keep(key, request.model, answer, self._forwarder.now())
            if work is not None:
                work.finish(answer)
        except BaseException as error:
            if work is not None:
                work.fail(respond.told(error, flight.cause))
            raise
        finally:
            if quotas.tokens:
                quotas.settle(ask.tenant, charged, used)
            if work is not None:
                self.sharing.close(work)

    async def _again(
        self,
        ask: Ask,
        attempts: Attempts,
        error: AttemptsExhausted,
        flight: Flight,
        work: Work | None,
    ) -> Attempts | None:
        """Once more, after a wait if need be, where that may help."""
        again = await self._once_more.let_in(ask, attempts, error, flight)
        if again is not None:
            attempts.close()
            if work is not None:
                work.attempts = again
        return again

    # Clients that share an answer

    async def _follow(self, call: Call, flight: Flight, request: ChatRequest, work: Work) -> None:
        recipient = Recipient(call, request, asyncio.get_running_loop())
        work.join(recipient, flight.deadline)
        await self._served(work, recipient)

    async def _go_on(self, work: Work, recipient: Recipient, deadline: float) -> None:
        """Serve a client who asked first, in a task of its own, since others share the answer."""
        call, limit_s = recipient.call, deadline - self._forwarder.now()
        flight = self._flights.open(call.client, limit_s, Cause.DEADLINE)
        try:
            await self._served(work, recipient)
        except (TradewindError, asyncio.CancelledError, ClientGone) as error:
            await self._tell(call, flight, error)
        finally:
            self._flights.close(flight)

    async def _served(self, work: Work, recipient: Recipient) -> None:
        """Return once it is, or has been told why not."""
        try:
            error = await recipient.over
        except asyncio.CancelledError:
            if recipient.over.cancelled():
                raise
            error = recipient.over.result()  # it was, in the very turn
        finally:
            work.leave(recipient)
        if error is not None:
            await self._fail(recipient.call, error)
