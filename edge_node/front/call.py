"""One HTTP request and the ways to answer it."""

from __future__ import annotations

import asyncio
import re
from random import Random
from typing import TYPE_CHECKING, Any

from granian.rsgi import ProtocolClosed as ClientGone  # type: ignore[attr-defined]

from edge_node.errors import InvalidHeader
from edge_node.front import respond
from edge_node.front.replies import JSON, Headers
from topology.resources import TenantSpec
from topology.wire.chat import ChatError, error_body, error_event

if TYPE_CHECKING:
    from edge_node.front.lesser import Order

__all__ = ["Call", "ClientGone", "RequestIds"]

REQUEST_ID = "x-request-id"
IDEMPOTENCY_KEY = "idempotency-key"
QUALITY = "x-tradewind-quality"
# Either may shorten the tenant's deadline for one request; the first one present counts.
DEADLINE_HEADERS = ("x-tradewind-deadline-ms", "x-request-timeout-ms")

_SANE_ID = re.compile(r"[A-Za-z0-9._:@/+-]{1,128}", re.ASCII)
_MAX_DEADLINE_DIGITS = 9


class RequestIds:
    """Short names, unique within this process and as good as unique beyond it."""

    __slots__ = ("_count", "_prefix")

    def __init__(self, rng: Random) -> None:
        self._prefix = f"{rng.getrandbits(48):012x}"
        self._count = 0

    def next(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count:06x}"


class _Gone:
    """Stands for a client that is somebody else's now."""

    def response_bytes(self, *_: Any) -> Any:
        raise ClientGone

    response_stream = response_bytes


_GONE = _Gone()


class Call:
    """Granian's scope and protocol objects, the request's ids, and what was sent so far.

    `own_id` is ours and unique, `request_id` the client's own where it sent a sane one.
    """

    __slots__ = (
        "client", "edge", "headers", "http1", "order", "own_id", "request_id", "scope", "status",
        "stream", "successor",
    )  # fmt: skip

    def __init__(self, scope: Any, client: Any, edge: str, own_id: str) -> None:
        self.scope = scope
        self.client = client
        self.edge = edge
        self.headers = scope.headers
        self.http1 = scope.http_version[0] == "1"
        self.own_id = own_id
        given = self.headers.get(REQUEST_ID)
        self.request_id = given if given is not None and _SANE_ID.fullmatch(given) else own_id
        self.status = 0
        self.stream: Any = None
        self.order: Order | None = None  # once it is known what is asked for
        self.successor: asyncio.Task[None] | None = None  # which answers the client instead

    def hand_over(self) -> Call:
        """The client, for somebody else to answer: through this one it cannot be any more."""
        other = Call(self.scope, self.client, self.edge, self.own_id)
        other.status, other.stream, other.order = self.status, self.stream, self.order
        self.client, self.stream = _GONE, None
        return other

    @property
    def handed_over(self) -> bool:
        return self.client is _GONE

    @property
    def given_id(self) -> str | None:
        """By which the client would repeat this request, where it said so."""
        key: str | None = self.headers.get(IDEMPOTENCY_KEY)
        if key is not None and _SANE_ID.fullmatch(key):
            return key
        return None if self.request_id is self.own_id else self.request_id

    @property
    def overlay_id(self) -> str:
        """The request's name in the region: unique whatever the client sends."""
        if self.request_id is self.own_id:
            return self.own_id
        return f"{self.request_id}~{self.own_id}"

    @property
    def address(self) -> str:
        """The client's IP address."""
        client: str = self.scope.client
        return client.rpartition(":")[0]

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        self.status = status
        self.client.response_bytes(status, self._named(headers), body)

    def begin_stream(self, headers: Headers) -> Any:
        self.status = 200
        self.stream = self.client.response_stream(200, self._named(headers))
        return self.stream

    async def fail(self, error: ChatError) -> None:
        """Tell the client: as a reply, or as the last event of a stream that has begun."""
        if self.stream is not None:
            await self.stream.send_bytes(error_event(error))
        else:
            self.fail_now(error)

    def fail_now(self, error: ChatError) -> None:
        """Tell the client, which was sent nothing yet."""
        extra = respond.headers(error, self.http1)
        headers = [*JSON, ("x-tradewind-edge", self.edge), (QUALITY, "refused"), *extra]
        self.reply(error.status, headers, error_body(error))

    def deadline_s(self, tenant: TenantSpec) -> float:
        """How long the request may take, or `InvalidHeader`."""
        for name in DEADLINE_HEADERS:
            given = self.headers.get(name)
            if given is None:
                continue
            sane = len(given) <= _MAX_DEADLINE_DIGITS and given.isascii() and given.isdecimal()
            if not sane or int(given) <= 0:
                raise InvalidHeader(name, "a whole number of milliseconds above 0")
            return min(int(given), tenant.deadline_ms) / 1000
        return tenant.deadline_ms / 1000

    def _named(self, headers: Headers) -> Headers:
        name = self.request_id
        return [*headers, ("x-tradewind-request-id", name), (REQUEST_ID, name)]
