"""The OpenAI API of one core, in plain HTTP: for a region without edges, and for people.

POST /v1/chat/completions (whole or streamed), GET /v1/models, /healthz (the process lives),
/readyz (it takes requests on), /metrics. There is no authentication: bind it to an address
that only the region's own machines reach.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from math import ceil
from typing import Any

import msgspec
from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined]

from region_core.ingress.collect import Collector, Outcome
from region_core.ingress.place import sane_cursor, urgency_of
from region_core.ingress.reuse import reuse_of
from region_core.job import Failed, Job
from region_core.service import CoreService
from runtime import logs
from runtime.clock import Clock
from runtime.metrics import CONTENT_TYPE
from topology.wire.chat import (
    DONE,
    ChatError,
    ChatRequest,
    ChunkEncoder,
    ModelEntry,
    Usage,
    completion,
    error_body,
    error_event,
    parse_request,
)

log = logs.get("http")

MAX_BODY_BYTES = 2 * 2**20
DEFAULT_DEADLINE_MS = 600_000
_BODY_TIMEOUT_S = 15.0
_MAX_DIGITS = 9

Headers = list[tuple[str, str]]
_JSON: Headers = [("content-type", "application/json")]
_EVENTS: Headers = [
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
]


class ServedModel(ModelEntry, frozen=True, kw_only=True):
    """A line of /v1/models, with what OpenAI's clients ignore and people want to know."""

    engine: str
    runs: str
    device: str
    dtype: str
    context_tokens: int


class HttpApp:
    """The RSGI application."""

    def __init__(
        self,
        service: CoreService,
        region: str,
        clock: Clock,
        expose: Callable[[], bytes],
        request_ids: Callable[[], str],
    ) -> None:
        self._service = service
        self._region = region
        self._clock = clock
        self._expose = expose
        self._request_ids = request_ids
        self._started_s = int(clock.wall())
        self._pages: dict[str, Callable[[Any], None]] = {
            "/v1/models": self._models,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/health": self._readyz,  # where routers made for vLLM and SGLang look
            "/metrics": self._metrics,
        }

    async def __rsgi__(self, scope: Any, client: Any) -> None:
        try:
            await self._serve(scope, client)
        except ChatError as error:
            _fail(client, error)
        except ProtocolClosed:
            pass  # the client has gone
        except Exception:  # a request's outermost edge
            log.exception("a request failed", path=scope.path)
            with contextlib.suppress(ProtocolClosed, RuntimeError):
                text = "The core failed to serve this request."
                _fail(client, ChatError(500, text, type="server_error", code="internal_error"))

    async def _serve(self, scope: Any, client: Any) -> None:
        page = self._pages.get(scope.path)
        if page is not None:
            _require(scope, "GET")
            page(client)
        elif scope.path == "/v1/chat/completions":
            _require(scope, "POST")
            await self._chat(scope, client)
        else:
            raise ChatError(404, f"Unknown request URL: {scope.path[:128]}.", code="unknown_url")

    # Chat

    async def _chat(self, scope: Any, client: Any) -> None:
        request = parse_request(await _body(scope, client))
        job = self._job(scope, request)
        sink = Collector()
        ticket = self._service.submit(job, sink)
        gone = client.client_disconnect()
        gone.add_done_callback(lambda future: None if future.cancelled() else ticket.cancel())
        try:
            if request.stream:
                await self._stream(client, job, sink, gone)
            else:
                await self._whole(scope, client, job, sink, gone)
        finally:
            gone.cancel()
            ticket.cancel()  # of no effect on what has ended

    async def _whole(
        self, scope: Any, client: Any, job: Job, sink: Collector, gone: asyncio.Future[Any]
    ) -> None:
        found = await _unless(gone, sink.whole())
        if found is None:
            return
        text, outcome = found
        if outcome.failed is not None:
            raise _chat_error(outcome.failed)
        usage = Usage.of(outcome.prompt_tokens, outcome.completion_tokens)
        body = completion(
            job.request_id,
            int(self._clock.wall()),
            job.request.model,
            text,
            str(outcome.finish_reason),
            usage,
        )
        headers = [*_JSON, ("x-request-id", job.request_id), ("x-tradewind-region", self._region)]
        if scope.headers.get("endpoint-load-metrics-format") is not None:
            headers.append(("endpoint-load-metrics", self._service.report().orca_header()))
        client.response_bytes(200, headers, body)

    async def _stream(
        self, client: Any, job: Job, sink: Collector, gone: asyncio.Future[Any]
    ) -> None:
        """The first bytes wait for the first text or the failure, so that an error that comes
        at once has its own HTTP status."""
        request = job.request
        events = ChunkEncoder(
            job.request_id, int(self._clock.wall()), request.model, request.include_usage
        )
        text = await _unless(gone, sink.more())
        if text is None:
            return
        if not text and sink.outcome is not None and sink.outcome.failed is not None:
            raise _chat_error(sink.outcome.failed)
        headers = [*_EVENTS, ("x-request-id", job.request_id), ("x-tradewind-region", self._region)]
        stream = client.response_stream(200, headers)
        head = events.role()
        while text:
            await stream.send_bytes(head + events.text(text))
            head = b""
            text = await _unless(gone, sink.more())
            if text is None:
                return
        assert sink.outcome is not None  # `more` returns nothing only then
        await stream.send_bytes(head + _ending(events, request, sink.outcome))

    def _job(self, scope: Any, request: ChatRequest) -> Job:
        given = scope.headers.get("x-request-timeout-ms")
        sane = given is not None and given.isdecimal() and len(given) <= _MAX_DIGITS
        if given is not None and not (sane and int(given) > 0):
            message = "The header 'x-request-timeout-ms' must be a whole number above 0."
            raise ChatError(400, message, code="invalid_header", param="x-request-timeout-ms")
        deadline_ms = int(given) if given is not None else DEFAULT_DEADLINE_MS
        urgency = urgency_of(scope.headers.get("priority"))
        request_id = self._request_ids()
        return Job(
            request=request,
            request_id=request_id,
            deadline_s=self._clock.now() + deadline_ms / 1000,
            urgency=urgency,
            cursor=sane_cursor(0, urgency, "", request.user or request_id, self._clock),
            reuse=reuse_of(scope.headers.get("cache-control")),
        )

    # Pages

    def _models(self, client: Any) -> None:
        service = self._service
        said = service.engine.description
        model = ServedModel(
            service.offer.model,
            self._started_s,
            "tradewind",
            engine=said.engine,
            runs=said.model,
            device=said.device,
            dtype=said.dtype,
            context_tokens=service.offer.context_tokens,
        )
        _reply(client, 200, {"object": "list", "data": [model]})

    def _healthz(self, client: Any) -> None:
        _reply(client, 200, {"status": "ok", "region": self._region})

    def _readyz(self, client: Any) -> None:
        service = self._service
        engine = service.engine.description.engine
        report = msgspec.structs.asdict(service.report())
        status = "ready" if service.ready else "draining" if report["draining"] else "unhealthy"
        body = {"status": status, "engine": engine} | report
        _reply(client, 200 if service.ready else 503, body)

    def _metrics(self, client: Any) -> None:
        client.response_bytes(200, [("content-type", CONTENT_TYPE)], self._expose())


def _ending(events: ChunkEncoder, request: ChatRequest, outcome: Outcome) -> bytes:
    if outcome.failed is not None:
        return error_event(_chat_error(outcome.failed))
    usage = Usage.of(outcome.prompt_tokens, outcome.completion_tokens)
    tail = events.usage(usage) if request.include_usage else b""
    return events.finish(str(outcome.finish_reason)) + tail + DONE


async def _unless(gone: asyncio.Future[Any], work: Any) -> Any:
    """What `work` returns, or None once the client has gone."""
    task = asyncio.ensure_future(work)
    await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        return task.result()
    task.cancel()
    return None


async def _body(scope: Any, client: Any) -> bytes:
    """The request's body, or `ChatError` 413 before more than the limit is held, 408 when late."""
    declared = scope.headers.get("content-length")
    too_large = ChatError(413, f"The request body is larger than {MAX_BODY_BYTES} bytes.",
                          code="request_too_large")  # fmt: skip
    if declared is not None and (len(declared) > _MAX_DIGITS or int(declared) > MAX_BODY_BYTES):
        raise too_large
    chunks: list[bytes] = []
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            async for chunk in client:
                chunks.append(chunk)
                if sum(map(len, chunks)) > MAX_BODY_BYTES:
                    raise too_large
    except TimeoutError as error:
        message = "The request body did not arrive in time."
        raise ChatError(408, message, code="slow_request") from error
    return b"".join(chunks)


def _require(scope: Any, method: str) -> None:
    if scope.method != method:
        message = f"Not allowed to {scope.method[:16]} {scope.path[:128]}; use {method}."
        raise ChatError(405, message, code="method_not_allowed")


def _chat_error(failed: Failed) -> ChatError:
    """A failure in OpenAI's form."""
    kind = "invalid_request_error" if failed.status < 500 else "server_error"
    return ChatError(
        failed.status,
        failed.message,
        type=kind,
        code=failed.reason or failed.code,
        param=failed.param,
        retryable=failed.retryable,
        retry_after_ms=failed.retry_after_ms,
    )


def _fail(client: Any, error: ChatError) -> None:
    headers = [*_JSON]
    if error.retry_after_ms is not None:
        headers.append(("retry-after", str(max(1, ceil(error.retry_after_ms / 1000)))))
        headers.append(("retry-after-ms", str(error.retry_after_ms)))  # OpenAI's clients read it
    elif error.status in (429, 503):
        headers.append(("retry-after", "1"))
    client.response_bytes(error.status, headers, error_body(error))


def _reply(client: Any, status: int, document: object) -> None:
    client.response_bytes(status, _JSON, msgspec.json.encode(document))
