"""What an end asks the other in QUIC DATAGRAM frames (RFC 9221), and what is answered.

The client sends PROBE, the server answers ECHO at once. Both are a few bytes of fixed layout, in
network byte order: a byte that says which, then the fields below, 32 bits each, and one byte of
flags. Bytes after them are a newer version's and are ignored, as are flags that are not known.
Nothing is retransmitted: a probe that is lost has done its work.

The counts let each probe's answer tell what was lost on the way there and what on the way back,
since the connection began.
"""

from __future__ import annotations

import struct

from msgspec import Struct

MAX_FRAME_BYTES = 64  # of a DATAGRAM frame: what both ends announce (RFC 9221, section 3)
PER_S = 128  # datagrams of one connection that are looked at; a monitor asks for far fewer

_PROBE = 1
_ECHO = 2
_STALLED = 1
_LAST = 2**32 - 1
_probe = struct.Struct(">BI")
_echo = struct.Struct(">BIIIB")


class Probe(Struct, frozen=True):
    """A question. `number` counts from 0."""

    number: int


class Echo(Struct, frozen=True):
    """The answer to the newest probe that has arrived.

    `got` is how many probes have arrived, this one included, and `sent` how many echoes were sent,
    this one included. `stalled`: the region has work and gets nowhere with it.
    """

    number: int
    got: int
    sent: int
    stalled: bool


def encode_probe(number: int) -> bytes:
    return _probe.pack(_PROBE, number & _LAST)


def encode_echo(number: int, got: int, sent: int, stalled: bool) -> bytes:
    return _echo.pack(_ECHO, number, got & _LAST, sent & _LAST, _STALLED if stalled else 0)


def decode(data: bytes) -> Probe | Echo | None:
    """What a datagram says; None when it says nothing that we know."""
    if not data:
        return None
    if data[0] == _PROBE and len(data) >= _probe.size:
        return Probe(_probe.unpack_from(data)[1])
    if data[0] == _ECHO and len(data) >= _echo.size:
        _, number, got, sent, flags = _echo.unpack_from(data)
        return Echo(number, got, sent, bool(flags & _STALLED))
    return None


class Budget:
    """How many datagrams of a connection are looked at: `PER_S` in each second."""

    __slots__ = ("_left", "_until")

    def __init__(self) -> None:
        self._left = 0
        self._until = 0.0

    def take(self, now: float) -> bool:
        """Whether one more, at `now`, is within it."""
        if now >= self._until:
            self._until = now + 1.0
            self._left = PER_S
        self._left -= 1
        return self._left >= 0
