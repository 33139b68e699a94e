"""The client's side of a relay: a binding is asked for on a tunnel to the relay, and is what
another tunnel then dials through."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from runtime.errors import TradewindError
from topology.overlay.errors import OverlayProtocolError, RegionFailure
from topology.overlay.frames import Failure, Relay, Relayed, encode
from topology.overlay.session import ClientSession, ResetCode, reset_code
from topology.overlay.udp import Address

if TYPE_CHECKING:
    from topology.overlay.client import ClientConnection

_MAX_ANSWER_BYTES = 8192


class Bound(Struct, frozen=True):
    """Where datagrams go that are to be relayed, and what stands before each of them."""

    family: socket.AddressFamily
    address: Address
    binding: bytes
    idle_ms: int  # it lapses when nothing passed for so long


class Via(Protocol):
    """Whoever can make a binding: a direct tunnel to the relay."""

    async def bind(self, region: str, turn: int) -> Bound:
        """Raises `PathDown`, `RegionFailure`, `OverlayProtocolError` or `OSError`."""
        ...


class Asking:
    """One RELAY and its answer. A connection treats it as it does an exchange."""

    __slots__ = ("_answer", "_connection", "_region", "_session", "_stream_id")

    def __init__(self, region: str, connection: ClientConnection, stream_id: int) -> None:
        self._region = region  # the relay's
        self._connection: ClientConnection | None = connection
        self._stream_id = stream_id
        self._session = ClientSession(_MAX_ANSWER_BYTES, relay=True)
        self._answer: asyncio.Future[Relayed] = asyncio.get_running_loop().create_future()

    async def answer(self) -> Relayed:
        """Raises `RegionFailure`, `PathDown` or `OverlayProtocolError`."""
        try:
            return await self._answer
        finally:
            self._abandon(ResetCode.CANCELLED)

    # Called by the connection

    def feed(self, data: bytes, fin: bool) -> None:
        try:
            for frame in self._session.receive(data):
                self._take(frame)
            if fin:
                self._connection = None
                self._session.finish()
        except OverlayProtocolError as error:
            self.fail(error)
            self._abandon(reset_code(error))

    def fail(self, error: TradewindError) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)

    def _take(self, frame: object) -> None:
        if isinstance(frame, Failure):
            self.fail(RegionFailure(self._region, frame))
        elif isinstance(frame, Relayed) and not self._answer.done():
            self._answer.set_result(frame)

    def _abandon(self, code: ResetCode) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon(self._stream_id, code)


def relay_bytes(region: str, turn: int) -> bytes:
    """All that is sent on the stream, FIN apart."""
    return encode(Relay(region, turn))
