"""More processes on the same addresses, for machines with more cores.

The first process holds the snapshot, the health of the edges and the metrics. Each further one
is a child that only answers: it is fed views through its standard input and reports its figures
through its standard output, in frames of a 4-byte length and MessagePack. When the input ends,
the child ends; a child that dies is started again, after a growing delay.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from random import Random

import msgspec
from msgspec import Struct

from control_plane.geodns.figures import Figures, total
from control_plane.geodns.lookup import View
from control_plane.geodns.settings import DnsSettings
from runtime import logs
from runtime.backoff import Backoff

log = logs.get("geodns.workers")

MAX_FRAME_BYTES = 64 * 2**20
STOP_S = 5.0
_COMMAND = (sys.executable, "-m", "control_plane.geodns.worker")


class Feed(Struct, array_like=True):
    """Parent to child: a new snapshot (encoded; None: as before) and the healthy edges."""

    snapshot: bytes | None
    healthy: tuple[str, ...]


class Start(Struct, array_like=True):
    """Parent to child, first: the settings as JSON, and the addresses to share."""

    settings: bytes
    listen: tuple[str, ...]


def frame(message: Struct) -> bytes:
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(4, "big") + body


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """The next frame's content, or None at the end of the stream."""
    try:
        size = int.from_bytes(await reader.readexactly(4), "big")
        if size > MAX_FRAME_BYTES:
            return None
        return await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


class Worker:
    """One child process, kept alive from `start()` to `close()`."""

    def __init__(self, number: int, start: Start, rng: Random) -> None:
        self._number = number
        self._start = start
        self._backoff = Backoff(0.1, 5.0, rng.random)
        self._view: View | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._retired = Figures()  # of earlier processes
        self._figures = Figures()
        self.restarts = 0

    @property
    def figures(self) -> Figures:
        return total((self._retired, self._figures))

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"dns-worker-{self._number}")

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.close()  # the child's word to stop
            try:
                await asyncio.wait_for(process.wait(), STOP_S)
            except TimeoutError:
                process.kill()
                await process.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def replace(self, view: View) -> None:
        """Have the child answer from `view`."""
        before, self._view = self._view, view
        same = before is not None and before.snapshot is view.snapshot
        self._feed(view, with_snapshot=not same)

    def _feed(self, view: View, *, with_snapshot: bool) -> None:
        process = self._process
        if process is None or process.stdin is None or process.stdin.is_closing():
            return
        snapshot = view.snapshot.encode() if with_snapshot else None
        process.stdin.write(frame(Feed(snapshot, tuple(sorted(view.healthy)))))

    async def _run(self) -> None:
        while True:
            await self._live()
            if self._task is None:
                return  # told to close
            self._retired = total((self._retired, self._figures.without_gauges()))
            self._figures = Figures()
            delay_s = self._backoff.next_s()
            self.restarts += 1
            log.error("a worker ended", worker=self._number, restart_in_s=round(delay_s, 2))
            await asyncio.sleep(delay_s)

    async def _live(self) -> None:
        """Start a child and read its figures until it ends."""
        process = await asyncio.create_subprocess_exec(
            *_COMMAND, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(frame(self._start))
            if self._view is not None:
                self._feed(self._view, with_snapshot=True)
            while (body := await read_frame(process.stdout)) is not None:
                self._figures = msgspec.msgpack.decode(body, type=Figures)
                self._backoff.reset()
        finally:
            self._process = None
            process.stdin.close()
            with contextlib.suppress(ProcessLookupError):
                if process.returncode is None:
                    process.kill()
        await process.wait()


class Workers:
    """The children of a process; none where the settings ask for a single process."""

    def __init__(self, settings: DnsSettings, rng: Random) -> None:
        self._settings = settings
        self._rng = rng
        self._workers: list[Worker] = []

    def start(self, listen: tuple[str, ...]) -> None:
        """Start the children on addresses that this process listens on already."""
        encoded = msgspec.json.encode(self._settings, enc_hook=str)
        for number in range(1, self._settings.workers):
            worker = Worker(number, Start(encoded, listen), self._rng)
            worker.start()
            self._workers.append(worker)

    async def close(self) -> None:
        await asyncio.gather(*(worker.close() for worker in self._workers))
        self._workers = []

    def replace(self, view: View) -> None:
        for worker in self._workers:
            worker.replace(view)

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self._workers if worker.pid is not None]

    @property
    def restarts(self) -> int:
        return sum(worker.restarts for worker in self._workers)

    @property
    def figures(self) -> Figures:
        return total(worker.figures for worker in self._workers)
