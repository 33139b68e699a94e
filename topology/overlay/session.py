"""Both ends of one exchange as state machines: bytes in, frames out, in the one legal order.

    client   REQUEST BODY FIN
    server   ACCEPT? TOKENS* (END | ERROR) FIN

or, where a relay is asked for:

    client   RELAY FIN
    server   (RELAYED | ERROR) FIN

Frames of unknown types may stand anywhere and are skipped. Each end trusts nothing: an illegal
order, a lying length or a frame that does not decode raises `OverlayProtocolError`, after which
the stream is to be reset. Neither end reads a clock or a socket.
"""

from __future__ import annotations

from enum import IntEnum

from msgspec import Struct

from topology.overlay.errors import FrameTooLarge, OverlayProtocolError
from topology.overlay.frames import (
    MAX_PAYLOAD_BYTES,
    Accept,
    Body,
    End,
    Failure,
    Frame,
    FrameDecoder,
    Relay,
    Relayed,
    Reply,
    Request,
    Skipped,
    Tokens,
    encode,
)


class ResetCode(IntEnum):
    """Why a stream was reset: QUIC application error codes."""

    CANCELLED = 0x10  # nobody waits for the answer any more
    PROTOCOL = 0x11  # the peer broke the frame protocol
    TOO_LARGE = 0x12  # a frame above the limit
    TIMEOUT = 0x13  # the request did not arrive in time
    UNHEARD = 0x14  # nothing was heard of the client for so long that it seemed to be gone


class Arrival(Struct, frozen=True):
    """A whole request."""

    request: Request
    body: bytes


def request_bytes(request: Request, body: bytes) -> bytes:
    """All that the client sends, FIN apart, or `FrameTooLarge`."""
    return encode(request) + encode(Body(body))


def reset_code(error: OverlayProtocolError) -> ResetCode:
    """What to tell the peer about its mistake."""
    return ResetCode.TOO_LARGE if isinstance(error, FrameTooLarge) else ResetCode.PROTOCOL


class ClientSession:
    """What the client receives, of a request or of a RELAY. `ended` is true once END, ERROR or
    RELAYED arrived."""

    __slots__ = ("_accepted", "_decoder", "_position", "_relay", "ended")

    def __init__(self, max_payload_bytes: int = MAX_PAYLOAD_BYTES, *, relay: bool = False) -> None:
        self._decoder = FrameDecoder(max_payload_bytes)
        self._relay = relay
        self._accepted = False  # no ACCEPT may come any more
        self._position = 0  # no token below it may come any more
        self.ended = False

    def receive(self, data: bytes) -> list[Reply]:
        """The frames that `data` completes, or `OverlayProtocolError`."""
        replies: list[Reply] = []
        for frame in self._decoder.feed(data):
            if isinstance(frame, Skipped):
                continue
            if self.ended:
                raise OverlayProtocolError(f"{_name(frame)} after the end of the answer")
            if self._relay:
                if not isinstance(frame, (Relayed, Failure)):
                    raise OverlayProtocolError(f"{_name(frame)} in answer to RELAY")
                self.ended = True
            elif isinstance(frame, Tokens):
                self._tokens(frame)
            elif isinstance(frame, (End, Failure)):
                self.ended = True
            elif not isinstance(frame, Accept) or self._accepted:
                raise OverlayProtocolError(f"{_name(frame)} where an answer goes on")
            self._accepted = True
            replies.append(frame)
        return replies

    def tokens(self, data: bytes) -> Tokens | None:
        """`receive` for what arrives most: one TOKENS frame. None when `data` is not that."""
        frame = self._decoder.tokens(data)
        if frame is not None:
            if self.ended:
                raise OverlayProtocolError("TOKENS after the end of the answer")
            self._tokens(frame)
            self._accepted = True
        return frame

    def finish(self) -> None:
        """FIN arrived. Raises `OverlayProtocolError` when the answer is not whole."""
        if not self._decoder.idle:
            raise OverlayProtocolError("the stream ended in the middle of a frame")
        if not self.ended:
            wanted = "RELAYED" if self._relay else "END"
            raise OverlayProtocolError(f"the stream ended before {wanted} or ERROR")

    def _tokens(self, frame: Tokens) -> None:
        if frame.position < self._position:
            raise OverlayProtocolError(
                f"TOKENS at {frame.position}, where {self._position} comes next"
            )
        self._position = frame.position + len(frame.ids)


class ServerSession:
    """What the server receives, and the order of what it sends."""

    __slots__ = ("_accepted", "_body", "_decoder", "_relay", "_request", "ended")

    def __init__(self, max_body_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self._decoder = FrameDecoder(max_body_bytes)
        self._request: Request | None = None
        self._body: bytes | None = None
        self._relay: Relay | None = None
        self._accepted = False
        self.ended = False  # END, ERROR or RELAYED was sent

    @property
    def held_bytes(self) -> int:
        """Bytes of a request that is not whole yet."""
        return self._decoder.held_bytes + (len(self._body) if self._body else 0)

    def receive(self, data: bytes, fin: bool) -> Arrival | Relay | None:
        """The request, once REQUEST, BODY and FIN are here, or RELAY and FIN; or
        `OverlayProtocolError`."""
        for frame in self._decoder.feed(data):
            if isinstance(frame, Skipped):
                continue
            if self._relay is not None:
                raise OverlayProtocolError(f"{_name(frame)} after RELAY")
            if self._request is None and isinstance(frame, Request):
                self._request = frame
            elif self._request is not None and self._body is None and isinstance(frame, Body):
                self._body = frame.data
            elif self._request is None and isinstance(frame, Relay):
                self._relay = frame
            else:
                raise OverlayProtocolError(f"{_name(frame)} is out of order in a request")
        if not fin:
            return None
        if not self._decoder.idle:
            raise OverlayProtocolError("the stream ended in the middle of a frame")
        if self._relay is not None:
            return self._relay
        if self._request is None or self._body is None:
            raise OverlayProtocolError("the stream ended before REQUEST and BODY")
        return Arrival(self._request, self._body)

    def send(self, frame: Reply) -> tuple[bytes, bool]:
        """The bytes of a frame and whether FIN follows. Raises when the order is wrong."""
        if self.ended:
            raise OverlayProtocolError(f"{_name(frame)} after the end of the answer")
        if isinstance(frame, Accept) and self._accepted:
            raise OverlayProtocolError("ACCEPT must come first, and once")
        if isinstance(frame, Relayed) != (self._relay is not None) and not (
            isinstance(frame, Failure)
        ):
            raise OverlayProtocolError(f"{_name(frame)} does not answer what was asked")
        data = encode(frame)
        self._accepted = True
        self.ended = isinstance(frame, (End, Failure, Relayed))
        return data, self.ended


def _name(frame: Frame) -> str:
    return "ERROR" if isinstance(frame, Failure) else type(frame).__name__.upper()
