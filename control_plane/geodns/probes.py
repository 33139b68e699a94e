"""Asking edges whether they are ready: the shell around `HealthBoard`.

DNS asks by itself, so that its answers depend on nobody else's view: with the whole control
plane dead, a dead edge still leaves the answers. All of an edge's addresses are asked at once
and one that is ready is enough, since this machine may not reach every family that clients do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from random import Random

from control_plane.geodns.health import HealthBoard, HealthSettings
from runtime import logs
from runtime.clock import Clock
from topology.resources import EdgeSiteSpec

log = logs.get("geodns.health")

_ANSWER_BYTES = 4096  # the status line comes first; more is not read


class Prober:
    """Keeps a board up to date from `start()` to `close()`.

    `on_change` is called on the loop whenever the set of healthy edges changes. Rounds are
    jittered by a tenth, so that many DNS servers do not ask in step.
    """

    def __init__(
        self,
        settings: HealthSettings,
        on_change: Callable[[], None],
        clock: Clock,
        rng: Random,
    ) -> None:
        self.board = HealthBoard(settings)
        self._settings = settings
        self._on_change = on_change
        self._clock = clock
        self._rng = rng
        self._edges: Mapping[str, EdgeSiteSpec] = {}
        self._task: asyncio.Task[None] | None = None
        self._at_once = asyncio.Semaphore(settings.probes_at_once)

    def follow(self, edges: Mapping[str, EdgeSiteSpec]) -> None:
        """Ask these edges from the next round on. Does not call `on_change`."""
        self._edges = edges
        self.board.keep(edges)

    def start(self) -> None:
        if self._settings.enabled:
            self._task = asyncio.create_task(self._run(), name="edge-health")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        interval_s = self._settings.interval_ms / 1000
        while True:
            due = loop.time() + interval_s * (0.9 + 0.2 * self._rng.random())
            await self._round()
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def _round(self) -> None:
        for finished in asyncio.as_completed(
            [self._ask_edge(name, spec) for name, spec in self._edges.items()]
        ):
            name, detail = await finished
            ok = detail == ""
            if self.board.observe(name, ok, detail, self._clock.now()):
                log.warning("edge health", edge=name, healthy=ok, detail=detail or "ready")
                self._on_change()

    async def _ask_edge(self, name: str, spec: EdgeSiteSpec) -> tuple[str, str]:
        """The edge's name, and "" if it is ready or what is wrong with it."""
        port = self._settings.port or spec.port
        async with self._at_once:
            details = await asyncio.gather(*(self._ask(a, port) for a in spec.addresses))
        return name, "" if "" in details else "; ".join(details)

    async def _ask(self, address: str, port: int) -> str:
        try:
            async with asyncio.timeout(self._settings.timeout_ms / 1000):
                status = await self._status(address, port)
        except TimeoutError:
            return f"{address}: no answer in {self._settings.timeout_ms} ms"
        except (OSError, ValueError) as error:
            return f"{address}: {error}"
        return "" if status == "200" else f"{address}: status {status}"

    async def _status(self, address: str, port: int) -> str:
        """The status of the answer; raises `OSError`, or `ValueError` where it is not HTTP."""
        reader, writer = await asyncio.open_connection(address, port, limit=_ANSWER_BYTES)
        try:
            host = f"[{address}]" if ":" in address else address
            request = f"GET {self._settings.path} HTTP/1.1\r\nHost: {host}:{port}\r\n"
            writer.write(f"{request}Connection: close\r\n\r\n".encode())
            line = await reader.readline()  # ValueError: longer than the limit
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                writer.transport.abort()
        version, _, rest = line.decode("latin-1").partition(" ")
        if not version.startswith("HTTP/1.") or not line.endswith(b"\n"):
            raise ValueError("the answer is not HTTP")
        return rest[:3]
