"""Stop on SIGINT or SIGTERM, in order, within a bound."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

from runtime import logs

log = logs.get("shutdown")

Closer = Callable[[], Awaitable[None]]


class Shutdown:
    """Collects what to close; closes it last-opened first when the process is told to stop.

    Use: `shutdown.add("server", server.stop)` as things start, then `await shutdown.wait()`.
    A second signal, or a closer that takes longer than `grace_s`, abandons the rest.
    """

    def __init__(self, grace_s: float = 10.0) -> None:
        self._closers: list[tuple[str, Closer]] = []
        self._grace_s = grace_s
        self._asked = asyncio.Event()

    def add(self, name: str, close: Closer) -> None:
        self._closers.append((name, close))

    def ask(self) -> None:
        """Begin the shutdown; also what the signal handlers call."""
        self._asked.set()

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    async def wait(self) -> None:
        """Return once everything is closed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.ask)
        await self._asked.wait()
        await self.close()

    async def close(self) -> None:
        while self._closers:
            name, close = self._closers.pop()
            try:
                await asyncio.wait_for(close(), self._grace_s)
            except TimeoutError:
                log.warning("not closed in time", what=name, grace_s=self._grace_s)
