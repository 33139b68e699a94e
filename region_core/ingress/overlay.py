"""Requests that come over the overlay: an exchange in, frames out.

This path is short on purpose: no task and no queue per request; a step's frames go out in one
flush, which the overlay server sees to.
"""

from __future__ import annotations

from region_core.engine.base import FinishReason
from region_core.ingress.place import sane_cursor
from region_core.job import Failed, Job
from region_core.service import CoreService
from runtime.clock import Clock
from topology.overlay.frames import Accept, End, Failure, Request, Tokens
from topology.overlay.peer import ServerExchange
from topology.wire.chat import ChatError, ChatRequest, parse_request

_MESSAGE_CHARACTERS = 4096
_PARAM_CHARACTERS = 256


class OverlayIngress:
    """The overlay server's handler: `on_exchange` is called on the loop, once per request."""

    def __init__(self, service: CoreService, region: str, clock: Clock) -> None:
        self._service = service
        self._region = region
        self._clock = clock
        self._engine = service.engine.description.engine

    def on_exchange(self, exchange: ServerExchange) -> None:
        try:
            chat = parse_request(exchange.body)
        except ChatError as error:
            param = error.param[:_PARAM_CHARACTERS] if error.param else None
            text = error.message[:_MESSAGE_CHARACTERS]
            exchange.send(Failure("invalid", text, error.status, False, param, error.code))
            return
        job = _job(exchange.request, chat, self._clock)
        sink = _ExchangeSink(exchange, self._service, self._region, self._engine)
        exchange.on_cancel = self._service.submit(job, sink).cancel


def _job(request: Request, chat: ChatRequest, clock: Clock) -> Job:
    user = chat.user or request.request_id
    return Job(
        request=chat,
        request_id=request.request_id,
        deadline_s=clock.now() + request.deadline_ms / 1000,
        tenant=request.tenant,
        urgency=request.priority,
        resume=request.resume_tokens,
        weight=request.weight,
        cursor=sane_cursor(request.cursor, request.priority, request.tenant, user, clock),
        reuse=request.reuse,
    )


class _ExchangeSink:
    """What becomes of a request, as frames."""

    __slots__ = ("_engine", "_region", "_send", "_service")

    def __init__(
        self, exchange: ServerExchange, service: CoreService, region: str, engine: str
    ) -> None:
        self._send = exchange.send
        self._service = service
        self._region = region
        self._engine = engine

    def accepted(self, queue_ms: float, load: float) -> None:
        self._send(Accept(queue_ms, load, self._region, self._engine, self._service.level))

    def tokens(self, position: int, ids: tuple[int, ...], text: str) -> None:
        self._send(Tokens(position, ids, text))

    def end(
        self,
        finish_reason: FinishReason,
        prompt_tokens: int,
        completion_tokens: int,
        age_s: float | None = None,
    ) -> None:
        service = self._service
        self._send(
            End(
                finish_reason,
                prompt_tokens,
                completion_tokens,
                service.load,
                service.level,
                age_s is not None,
                age_s or 0.0,
            )
        )

    def failed(self, failed: Failed) -> None:
        self._send(
            Failure(
                failed.code,
                failed.message[:_MESSAGE_CHARACTERS],
                failed.status,
                failed.retryable,
                failed.param,
                failed.reason,
                failed.retry_after_ms,
                self._service.level,
                failed.queue_ms,
            )
        )
