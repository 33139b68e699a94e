"""Fresh answers in place of those whose time is over, asked for while the old ones are given.

Each is an ordinary request to a region, the least urgent there is: it is sent only where there is
room at once, goes through the same gate and the same attempts as others, and nobody waits for it.
"""

from __future__ import annotations

import asyncio

from edge_node.admission.entry import Entry
from edge_node.cache.key import AnswerKey
from edge_node.errors import AttemptsExhausted, Refused
from edge_node.figures import Figures
from edge_node.forward.attempt import Ask
from edge_node.forward.attempts import Attempts
from edge_node.forward.forwarder import Forwarder
from edge_node.front.replies import Answer
from edge_node.front.reuse import Reuse
from edge_node.inflight import Cause, Flights
from edge_node.serving import Serving
from runtime import logs
from runtime.clock import Clock
from topology.cursor import MAX_CURSOR, URGENCY
from topology.wire.chat import ChatRequest

log = logs.get("revalidation")

MOST_AT_ONCE = 32


class Revalidation:
    """Of one edge worker."""

    def __init__(
        self,
        serving: Serving,
        forwarder: Forwarder,
        entry: Entry,
        flights: Flights,
        figures: Figures,
        reuse: Reuse,
        clock: Clock,
    ) -> None:
        self._serving = serving
        self._forwarder = forwarder
        self._entry = entry
        self._flights = flights
        self._figures = figures
        self._reuse = reuse
        self._clock = clock
        self._name = f"anew-{serving.edge}-{int(clock.wall() * 1e6):x}-"
        self._asked = 0
        self._tasks: dict[AnswerKey, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, key: AnswerKey, request: ChatRequest, body: bytes) -> bool:
        """Ask for it, unless somebody does already. False: not now."""
        if key in self._tasks or len(self._tasks) >= MOST_AT_ONCE:
            return False
        task = asyncio.create_task(self._ask(key, request, body))
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._tasks.pop(key, None))
        return True

    async def _ask(self, key: AnswerKey, request: ChatRequest, body: bytes) -> None:
        tenant, serving = key[0], self._serving
        spec = serving.snapshot.tenants.get(tenant)
        if spec is None or request.model not in serving.snapshot.models:
            return
        flight = self._flights.open(_Nobody(), spec.deadline_ms / 1000, Cause.DEADLINE)
        try:
            decision = serving.choice.decide(tenant, request.model)
            if decision.refusal:
                return
            ask = self._of(tenant, request, body)
            attempts = self._entry.at_once(ask, decision, flight)
            if attempts is not None:
                await self._receive(key, ask, attempts)
        except (AttemptsExhausted, Refused) as error:
            log.debug("no fresh answer", model=request.model, error=str(error))
        except asyncio.CancelledError:
            if flight.cause is None:
                raise
        except Exception:  # the task's outermost edge
            log.exception("asking for a fresh answer failed")
        finally:
            self._flights.close(flight)

    async def _receive(self, key: AnswerKey, ask: Ask, attempts: Attempts) -> None:
        quotas, used = self._serving.quotas, 0.0
        charged = quotas.charge(ask.tenant, ask.cost)
        try:
            end = await attempts.pour(_hold)
            used = float(end.prompt_tokens + end.completion_tokens)
        finally:
            attempts.close()
            quotas.settle(ask.tenant, charged, used)
        if attempts.joined or attempts.stands_in:
            return
        self._figures.forwarded += 1
        created_s = int(self._clock.wall())
        text = "".join(attempts.text)
        answer = Answer.of(ask.request_id, created_s, ask.model, text, end)
        self._figures.caches.revalidated += 1
        self._reuse.keep(key, ask.model, answer, self._forwarder.now())

    def _of(self, tenant: str, request: ChatRequest, body: bytes) -> Ask:
        self._asked += 1
        serving = self._serving
        return Ask(
            f"{self._name}{self._asked:06x}",
            tenant,
            request.model,
            URGENCY["batch"],
            request.stream,
            body,
            1,
            serving.silence_s,
            serving.snapshot.models[request.model].context_tokens,
            weight=serving.snapshot.tenants[tenant].weight,
            cursor=MAX_CURSOR,
            cost=self._forwarder.gate.estimate(request.model, len(body), request.max_tokens),
        )


class _Nobody:
    """Waits for nothing, and does not go away."""

    def client_disconnect(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()


def _hold(_: str) -> None:
    """`Attempts.text` has what came."""
