"""The overlay's frames and their bytes: type (1 byte), QUIC varint length, payload.

One exchange is one bidirectional QUIC stream. The client sends REQUEST, BODY and FIN, the
server ACCEPT at most once, TOKENS any number of times, then END or ERROR, and FIN. Payloads
are msgpack arrays in the order of the fields here, BODY's is the client's JSON as it came. A
field may be added at the end of a frame: older peers ignore it. A frame of an unknown type is
skipped when its number is 0x40 or more, and an error below. Varints: RFC 9000, section 16.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Annotated, Literal, TypeAlias, cast

import msgspec
from msgspec import Meta, Struct

from topology.cursor import ALL_ADMITTED, MAX_CURSOR
from topology.overlay.errors import FrameTooLarge, OverlayProtocolError

MAX_PAYLOAD_BYTES = 4 * 2**20
FIRST_SKIPPED_TYPE = 0x40

_Id: TypeAlias = Annotated[str, Meta(max_length=256)]
_Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
_TokenId: TypeAlias = Annotated[int, Meta(ge=0, le=2**32)]
_Level: TypeAlias = Annotated[int, Meta(ge=0, le=ALL_ADMITTED)]
_Measure: TypeAlias = Annotated[float, Meta(ge=0, le=1e12)]

ErrorCode: TypeAlias = Literal[
    "overloaded", "deadline", "unknown_model", "invalid", "engine", "draining", "internal"
]


class FrameType(IntEnum):
    """The number that begins each frame."""

    REQUEST = 1
    BODY = 2
    ACCEPT = 3
    TOKENS = 4
    END = 5
    ERROR = 6
    RELAY = 7
    RELAYED = 8


class Request(Struct, frozen=True, array_like=True):
    """What a region must know about a request, apart from its body.

    `deadline_ms` is what is left of it at sending, `priority` an RFC 9218 urgency (0 is the
    most urgent), `attempt` counts from 1, and `resume_tokens` are the tokens that the client
    has already got from another region. `weight` is the tenant's among those of its tier, and
    `cursor` the request's place when not all are admitted (`topology.cursor`). `reuse`: an answer
    that the region has already will do, and this one may be kept.
    """

    request_id: _Id
    tenant: _Id
    model: _Id
    deadline_ms: _Count
    priority: Annotated[int, Meta(ge=0, le=7)]
    attempt: Annotated[int, Meta(ge=1, le=100)]
    stream: bool
    resume_tokens: tuple[_TokenId, ...] = ()
    weight: Annotated[float, Meta(ge=0.01, le=100)] = 1.0
    cursor: Annotated[int, Meta(ge=0, le=MAX_CURSOR)] = 0
    reuse: bool = True


class Body(Struct, frozen=True, array_like=True):
    """The client's JSON, untouched. The one frame whose payload is not msgpack."""

    data: bytes


class Accept(Struct, frozen=True, array_like=True, gc=False):
    """The region took the request. `load` is 0 when idle and 1 when full; it may exceed 1.

    Here and below, `level` is what the region admits just now: requests whose cursor is below it
    (`topology.cursor`)."""

    queue_ms: _Measure
    load: _Measure
    region: _Id
    engine: _Id
    level: _Level = ALL_ADMITTED


class Tokens(Struct, frozen=True, array_like=True, gc=False):
    """A run of the answer. `position` is the index of the first of `ids` in the whole answer.

    `text` holds complete UTF-8 alone: a character that spans two tokens comes with the last.
    """

    position: _Count
    ids: tuple[_TokenId, ...]
    text: str


class End(Struct, frozen=True, array_like=True, gc=False):
    """The answer is whole. `cached`: the region had it already, since `age_s`."""

    finish_reason: Literal["stop", "length"]
    prompt_tokens: _Count
    completion_tokens: _Count
    load: _Measure
    level: _Level = ALL_ADMITTED
    cached: bool = False
    age_s: _Measure = 0.0


class Failure(Struct, frozen=True, array_like=True):
    """The ERROR frame. `status` is the HTTP status that fits, `param` the field at fault,
    `reason` OpenAI's `error.code` where it says more than `code`, and `retry_after_ms` when to try
    again here, if the sender knows."""

    code: ErrorCode
    message: Annotated[str, Meta(max_length=4096)]
    status: Annotated[int, Meta(ge=400, le=599)]
    retryable: bool
    param: Annotated[str, Meta(max_length=256)] | None = None
    reason: Annotated[str, Meta(max_length=64)] | None = None
    retry_after_ms: Annotated[int, Meta(ge=0, le=3_600_000)] | None = None
    level: _Level | None = None  # None: it says nothing of it
    queue_ms: _Measure | None = None


class Relay(Struct, frozen=True, array_like=True):
    """Stands alone on a stream: let datagrams of mine pass to a core of `region`.

    `turn` picks which one, modulo their number.
    """

    region: _Id
    turn: _Count


class Relayed(Struct, frozen=True, array_like=True):
    """The answer to RELAY: `binding` goes before each datagram that is to pass. It lapses when
    nothing passed for `idle_ms`."""

    binding: Annotated[bytes, Meta(min_length=8, max_length=8)]
    idle_ms: _Count


class Skipped(Struct, frozen=True, array_like=True):
    """A frame of a type that this version does not know and may ignore."""

    type: int
    size_bytes: int


Frame: TypeAlias = Request | Body | Accept | Tokens | End | Failure | Relay | Relayed | Skipped
Reply: TypeAlias = Accept | Tokens | End | Failure | Relayed


_TYPE_OF: dict[type, FrameType] = {
    Request: FrameType.REQUEST,
    Accept: FrameType.ACCEPT,
    Tokens: FrameType.TOKENS,
    End: FrameType.END,
    Failure: FrameType.ERROR,
    Relay: FrameType.RELAY,
    Relayed: FrameType.RELAYED,
}
_DECODE: dict[int, Callable[[bytes], Frame]] = {
    int(number): msgspec.msgpack.Decoder(kind).decode for kind, number in _TYPE_OF.items()
}
_LAST_TYPE = max(FrameType)
_TOKENS, _BODY = int(FrameType.TOKENS), int(FrameType.BODY)
_pack = msgspec.msgpack.Encoder().encode


def encode(frame: Request | Body | Relay | Reply) -> bytes:
    """The bytes of a frame, or `FrameTooLarge`."""
    if type(frame) is Body:
        return encode_payload(FrameType.BODY, frame.data)
    return encode_payload(_TYPE_OF[type(frame)], _pack(frame))


def encode_payload(number: int, payload: bytes) -> bytes:
    """Type, length, payload. For frames of types unknown to this file, and for tests."""
    size = len(payload)
    if size < 0x40:
        return bytes((number, size)) + payload
    if size < 0x4000:
        return bytes((number, 0x40 | size >> 8, size & 0xFF)) + payload
    if size > MAX_PAYLOAD_BYTES:
        raise FrameTooLarge(
            f"a frame of {size} bytes, where {MAX_PAYLOAD_BYTES} are allowed",
            hint="refuse the request: it is larger than any region takes",
        )
    return bytes((number,)) + (0x80000000 | size).to_bytes(4, "big") + payload


class FrameDecoder:
    """Bytes in any chunks -> whole frames. Holds at most one frame's bytes.

    After an error the stream is to be reset: there is no way to find the next frame.
    """

    __slots__ = ("_held", "_max_payload", "_need")

    def __init__(self, max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self._held = bytearray()
        self._need = 0  # bytes that must be held before the next frame can be whole
        self._max_payload = max_payload_bytes

    @property
    def idle(self) -> bool:
        """No frame is half received."""
        return not self._held

    @property
    def held_bytes(self) -> int:
        return len(self._held)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes, or `OverlayProtocolError`."""
        if self._held:
            self._held += data
            if len(self._held) < self._need:
                return []
            data = bytes(self._held)
            self._held.clear()
        return self._split(data)

    def tokens(self, data: bytes) -> Tokens | None:
        """What `data` is when it is one small TOKENS frame, as most of what arrives is; else
        None: `feed` it. May raise `OverlayProtocolError`."""
        if self._held or len(data) < 2 or data[0] != _TOKENS or data[1] != len(data) - 2:
            return None
        if data[1] >= 0x40:  # the length takes two bytes or more
            return None
        return cast(Tokens, _decode(_TOKENS, data[2:]))

    def _split(self, data: bytes) -> list[Frame]:
        frames: list[Frame] = []
        offset, end = 0, len(data)
        while offset < end:
            start, size = self._header(data, offset, end)
            if start + size > end or size < 0:
                self._need = start + max(size, 0) - offset
                self._held += data[offset:]
                break
            frames.append(_decode(data[offset], data[start : start + size]))
            offset = start + size
        return frames

    def _header(self, data: bytes, offset: int, end: int) -> tuple[int, int]:
        """Where the payload begins and its size; size -1 while the header is not whole."""
        if not 0 < data[offset] <= _LAST_TYPE and data[offset] < FIRST_SKIPPED_TYPE:
            raise OverlayProtocolError(f"frame type {data[offset]} is not one of this protocol")
        if offset + 1 == end:
            return end + 1, -1
        first = data[offset + 1]
        width = 1 << (first >> 6)
        start = offset + 1 + width
        if start > end:
            return start, -1
        size = int.from_bytes(data[offset + 1 : start], "big") & ((1 << (8 * width - 2)) - 1)
        if size > self._max_payload:
            raise FrameTooLarge(
                f"a frame of {size} bytes, where {self._max_payload} are allowed",
                hint="the peer is faulty or hostile; its stream is reset",
            )
        return start, size


def _decode(number: int, payload: bytes) -> Frame:
    if number == _BODY:
        return Body(payload)
    if number >= FIRST_SKIPPED_TYPE:
        return Skipped(number, len(payload))
    try:
        return _DECODE[number](payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        name = FrameType(number).name
        raise OverlayProtocolError(f"a malformed {name} frame: {error}") from error
