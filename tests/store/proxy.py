"""A TCP proxy that breaks on command, between a client and etcd."""

from __future__ import annotations

import asyncio


class Proxy:
    """Forwards connections on `address` to `target`. `cut` resets all of them; while `stopped`
    new ones are reset at once; while frozen nothing passes, in either direction; while `deaf`
    requests arrive and answers get lost. `late_s`: how long answers are on their way; set it
    while there are no connections."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.sides: set[_Side] = set()
        self.frozen = False
        self.stopped = False
        self.deaf = False
        self.late_s = 0.0
        self.connections = 0  # ever accepted
        self.address = ""

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Side(self, self._join), "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        for side in tuple(self.sides):
            side.transport.abort()

    def freeze(self) -> None:
        self.frozen = True
        for side in self.sides:
            side.transport.pause_reading()

    def thaw(self) -> None:
        self.frozen = False
        for side in self.sides:
            side.transport.resume_reading()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        self.cut()
        while self.sides or self._tasks:
            await asyncio.sleep(0)

    def _join(self, side: _Side) -> None:
        self.connections += 1
        if self.stopped:
            side.transport.abort()
            return
        side.transport.pause_reading()
        task = asyncio.create_task(self._reach(side))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reach(self, side: _Side) -> None:
        host, _, port = self._target.rpartition(":")
        loop = asyncio.get_running_loop()
        try:
            _, there = await loop.create_connection(lambda: _Side(self), host, int(port))
        except OSError:
            side.transport.abort()
            return
        side.other, there.other = there, side
        if side.transport.is_closing():
            there.transport.abort()
        elif not self.frozen:
            side.transport.resume_reading()


class _Side(asyncio.Protocol):
    """One of a connection's two halves."""

    transport: asyncio.Transport

    def __init__(self, proxy: Proxy, join: object = None) -> None:
        self._proxy = proxy
        self._join = join
        self.other: _Side | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._proxy.sides.add(self)
        if callable(self._join):
            self._join(self)
        elif self._proxy.frozen:
            transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        answers = self._join is None
        if self.other is None or (answers and self._proxy.deaf):
            return
        if answers and self._proxy.late_s:
            write = self.other.transport.write
            asyncio.get_running_loop().call_later(self._proxy.late_s, write, data)
        else:
            self.other.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._proxy.sides.discard(self)
        if self.other is not None:
            self.other.transport.abort()
