"""Several workers: processes of ours that share one port, kept up by a parent that serves nothing.

A worker dies with its parent: it holds the reading end of a pipe (its standard input) and stops
when that ends.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from random import Random

from runtime import logs
from runtime.backoff import Backoff
from runtime.shutdown import Shutdown

log = logs.get("workers")

RESTART_MIN_S = 0.5
RESTART_MAX_S = 30.0
STEADY_S = 60.0  # a worker that lived this long may be restarted at once


class Workers:
    """Runs `command` with `--worker <n>` for each of `count` workers, and again when one dies."""

    def __init__(self, command: Sequence[str], count: int, stop_s: float, rng: Random) -> None:
        self._command = tuple(command)
        self._count = count
        self._stop_s = stop_s
        self._rng = rng
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._keep_up(n)) for n in range(self._count)]

    async def close(self) -> None:
        """Stop every worker, each within its own grace."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep_up(self, worker: int) -> None:
        backoff = Backoff(RESTART_MIN_S, RESTART_MAX_S, self._rng.random)
        loop = asyncio.get_running_loop()
        while True:
            born = loop.time()
            code = await self._live(worker)
            if loop.time() - born > STEADY_S:
                backoff.reset()
            delay_s = backoff.next_s()
            log.error("worker died", worker=worker, code=code, restart_in_s=round(delay_s, 1))
            await asyncio.sleep(delay_s)

    async def _live(self, worker: int) -> int:
        process = await asyncio.create_subprocess_exec(
            *self._command, "--worker", str(worker), stdin=asyncio.subprocess.PIPE
        )
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                await self._end(process, worker)

    async def _end(self, process: asyncio.subprocess.Process, worker: int) -> None:
        try:
            await asyncio.wait_for(process.wait(), self._stop_s)
        except TimeoutError:
            log.warning("worker killed: it did not stop in time", worker=worker)
            process.kill()
            await process.wait()


async def stop_with_parent(shutdown: Shutdown) -> None:
    """Ask for the shutdown when the parent has gone: standard input ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
    shutdown.ask()
