"""What a core and its engine's process say to each other: length (4 bytes), msgpack."""

from __future__ import annotations

import socket
from typing import TypeVar

import msgspec
from msgspec import Struct

from region_core.engine.base import Begin, Description, Limits
from region_core.scheduling.plan import Step
from region_core.weights.bundle import Dtype

_MAX_BYTES = 256 * 2**20  # far above any message; a guard against reading nonsense as a length

T = TypeVar("T")


class Setup(Struct, frozen=True, tag=True):
    """The first message: what to run."""

    weights: str | None  # paths are text here
    sha256: str | None
    cache_dir: str | None
    dtype: Dtype
    limits: Limits
    device: str
    threads: int
    pack: bool
    process: str  # for logs
    log_level: str


class Work(Struct, frozen=True, tag=True):
    """One step, after slots were begun and released in this order."""

    changes: tuple[Begin | int, ...]  # a sequence to begin, or a slot to release
    step: Step


class Ready(Struct, frozen=True, tag=True):
    """The engine runs."""

    description: Description
    limits: Limits
    bundle: str  # the folder of the converted weights, where the tokenizer lies


class Done(Struct, frozen=True, tag=True):
    """A step's tokens by slot."""

    tokens: dict[int, int]


class Fault(Struct, frozen=True, tag=True):
    """The step, or the start, failed."""

    message: str


class Gone(Exception):
    """The other side closed the channel."""


class Channel:
    """One end of the socket. Blocking; `timeout_s` bounds a read."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._encoder = msgspec.msgpack.Encoder()

    def send(self, message: Setup | Work | Ready | Done | Fault) -> None:
        data = self._encoder.encode(message)
        try:
            self._end.sendall(len(data).to_bytes(4, "little") + data)
        except OSError as error:
            raise Gone(str(error)) from error

    def receive(self, decoder: msgspec.msgpack.Decoder[T], timeout_s: float | None = None) -> T:
        """The next message. Raises `Gone`, or `TimeoutError`."""
        self._end.settimeout(timeout_s)
        size = int.from_bytes(self._exactly(4), "little")
        if size > _MAX_BYTES:
            raise Gone(f"a message of {size} bytes cannot be")
        return decoder.decode(self._exactly(size))

    def close(self) -> None:
        self._end.close()

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            try:
                part = self._end.recv(count)
            except TimeoutError:
                raise
            except OSError as error:
                raise Gone(str(error)) from error
            if not part:
                raise Gone("closed")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)
