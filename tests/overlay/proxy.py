"""A UDP relay that can lose and delay datagrams, each way for itself, seeded."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any


class Proxy:
    """`there` and `back` are shares that are lost (1: cut), `delay_s` is of each way."""

    def __init__(self, target: int, seed: int = 1) -> None:
        self.there = self.back = 0.0
        self.delay_s = 0.0
        self.passed = {"there": 0, "back": 0}
        self._random = Random(seed)
        self._loop = asyncio.get_running_loop()
        self._target = ("127.0.0.1", target)
        self._client: Any = None
        self._inside, self._outside = _bound(), _bound()
        self.port: int = self._inside.getsockname()[1]
        self._loop.add_reader(self._inside, self._from_client)
        self._loop.add_reader(self._outside, self._from_server)

    def _from_client(self) -> None:
        while (got := _read(self._inside)) is not None:
            data, self._client = got
            self._pass("there", self.there, self._outside, data, self._target)

    def _from_server(self) -> None:
        while (got := _read(self._outside)) is not None:
            self._pass("back", self.back, self._inside, got[0], self._client)

    def _pass(self, way: str, loss: float, sock: socket.socket, data: bytes, to: Any) -> None:
        if self._random.random() < loss:
            return
        self.passed[way] += 1
        if self.delay_s:
            self._loop.call_later(self.delay_s, _send, sock, data, to)
        else:
            _send(sock, data, to)

    def close(self) -> None:
        for sock in (self._inside, self._outside):
            self._loop.remove_reader(sock)
            sock.close()


def _bound() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


def _read(sock: socket.socket) -> tuple[bytes, Any] | None:
    try:
        return sock.recvfrom(65_536)
    except OSError:
        return None


def _send(sock: socket.socket, data: bytes, to: Any) -> None:
    if sock.fileno() >= 0:
        sock.sendto(data, to)


@asynccontextmanager
async def proxy(target: int) -> AsyncIterator[Proxy]:
    made = Proxy(target)
    try:
        yield made
    finally:
        made.close()
