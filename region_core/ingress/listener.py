"""The HTTP listener: granian's server, embedded in the core's own event loop.

So the engine and the API share one process and one set of weights. Its tasks are asyncio's.
"""

from __future__ import annotations

import asyncio
from typing import Any

from granian.constants import HTTPModes, Interfaces, TaskImpl
from granian.http import HTTP1Settings
from granian.server.embed import Server

from runtime import logs

log = logs.get("http")

_MAX_HEADERS_BYTES = 64 * 1024
_HEADER_TIMEOUT_MS = 10_000
_MAX_CONNECTIONS = 4096


class Listener:
    """Serves `app` (RSGI) on one address until `stop`."""

    def __init__(self, app: Any, host: str, port: int) -> None:
        self._server = Server(
            app,
            address=host,
            port=port,
            interface=Interfaces.RSGI,
            task_impl=TaskImpl.asyncio,
            http=HTTPModes.auto,
            websockets=False,
            backpressure=_MAX_CONNECTIONS,
            http1_settings=HTTP1Settings(
                header_read_timeout=_HEADER_TIMEOUT_MS, max_buffer_size=_MAX_HEADERS_BYTES
            ),
            log_enabled=False,
        )
        self._serving: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._serving = asyncio.create_task(self._server.serve(), name="http")

    async def stop(self, grace_s: float = 1.0) -> None:
        """Close the port, let requests under way finish for `grace_s`."""
        self._server.stop()  # type: ignore[no-untyped-call]
        if self._serving is None:
            return
        _, unfinished = await asyncio.wait((self._serving,), timeout=grace_s)
        if unfinished:
            log.warning("connections left open by their clients", grace_s=grace_s)
            self._serving.cancel()
