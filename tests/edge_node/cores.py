"""Region cores for tests: the real overlay server in front of a Python function."""

from __future__ import annotations

import asyncio
from pathlib import Path

from control_plane.pki import authority
from edge_node.forward.memory import Region
from runtime.identity import Identity, IdentityFiles, Principal
from topology.overlay.errors import PathDown, RegionFailure
from topology.overlay.frames import Request
from topology.overlay.relay import Route
from topology.overlay.server import OverlayServer, ServerExchange


class Mesh:
    """A certificate authority in a folder."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        authority.create_ca(directory / "ca")

    def files(self, role: str, name: str) -> IdentityFiles:
        principal = Principal(role, name)
        return authority.issue(self._directory / "ca", principal, self._directory / role / name)

    def identity(self, role: str, name: str) -> Identity:
        return Identity.load(self.files(role, name))


class Core:
    """Serves `region` over the overlay. Dies as a process would: without a word."""

    def __init__(self, name: str, region: Region, identity: Identity) -> None:
        self.name = name
        self.region = region
        self.sent: list[Request] = []
        self.cancelled = 0
        self._identity = identity
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: OverlayServer | None = None

    async def start(self, port: int = 0, route: Route | None = None) -> None:
        """With a `route` it relays too."""
        self._server = await OverlayServer.serve(
            "127.0.0.1", port, self._identity, self._begin, route=route
        )

    @property
    def address(self) -> str:
        assert self._server is not None
        return f"127.0.0.1:{self._server.port}"

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, exchange: ServerExchange) -> None:
        self.sent.append(exchange.request)
        task = asyncio.create_task(self._answer(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        def cancelled() -> None:
            self.cancelled += 1
            task.cancel()

        exchange.on_cancel = cancelled

    async def _answer(self, exchange: ServerExchange) -> None:
        try:
            async for frame in self.region(exchange.request, exchange.body):
                exchange.send(frame)
        except RegionFailure as failed:
            exchange.send(failed.failure)
        except PathDown:
            await asyncio.sleep(0.05)  # what was sent has left
            assert self._server is not None
            await self._server.close()
