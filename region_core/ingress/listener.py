"""The HTTP listener: granian's server, embedded in the core's own event loop.

So the engine and the API share one process and one set of weights. Its tasks are asyncio's.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from granian.constants import HTTPModes, Interfaces, TaskImpl
from granian.http import HTTP1Settings
from granian.server.embed import Server

from region_core.errors import AddressTaken
from runtime import logs

log = logs.get("http")

_MAX_HEADERS_BYTES = 64 * 1024
_HEADER_TIMEOUT_MS = 10_000
_MAX_CONNECTIONS = 4096


def check_free(host: str, port: int) -> None:
    """Raise `AddressTaken` unless the port can be had.

    granian shares ports by SO_REUSEPORT without a word: a second core on the same port would
    take half of the first one's connections.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise AddressTaken(
                f"cannot listen on {host}:{port}: {error.strerror}",
                hint="stop what listens there, or set another http.port",
            ) from error


class Listener:
    """Serves `app` (RSGI) on one address until `stop`."""

    def __init__(self, app: Any, host: str, port: int) -> None:
        self._server = Server(
            app,
            address=host,
            port=port,
            interface=Interfaces.RSGI,
            task_impl=TaskImpl.asyncio,
            # Where HTTP/2 is spoken too, granian waits for a silent client without end.
            http=HTTPModes.http1,
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
