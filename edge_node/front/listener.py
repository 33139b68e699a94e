"""The HTTP listener: granian's server embedded in our own event loop.

Measured with one worker that hashes the body and answers (2 cores, wrk included): embedded
42,000 to 66,000 req/s, granian's own process model 37,000 to 46,000; so a worker is one process
of ours, whose loop also runs the tunnels. Granian's `rust` tasks were 10% faster and kept 190
MiB after a million requests, so tasks are asyncio's. Several workers share the port by
SO_REUSEPORT, which granian sets.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from pathlib import Path
from typing import Any

from granian.constants import HTTPModes, Interfaces, TaskImpl
from granian.http import HTTP1Settings, HTTP2Settings
from granian.server.embed import Server
from msgspec import Struct

from runtime import logs
from runtime.errors import TradewindError

log = logs.get("listener")

MAX_HEADERS_BYTES = 64 * 1024
HEADER_TIMEOUT_MS = 10_000  # from a connection's opening, or its last reply, to a whole header
BACKLOG = 1024


class TlsFiles(Struct, frozen=True, forbid_unknown_fields=True):
    """The certificate (chain, leaf first) and key that clients see; PEM files."""

    certificate: Path
    key: Path


class AddressTaken(TradewindError):
    """Somebody else listens there, or the address is not this machine's."""


def check_free(host: str, port: int) -> None:
    """Raise `AddressTaken` unless the port can be had.

    Sharing a port by SO_REUSEPORT is silent: a second edge on the same one would take half of
    the first one's connections and nobody would say so.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise AddressTaken(
                f"cannot listen on {host}:{port}: {error.strerror}",
                hint="stop what listens there, or choose another port"
                if taken
                else "choose an address of this machine",
            ) from error


class Listener:
    """Serves `app` (RSGI) on one address until `stop`.

    Without `http2`, a connection that has nothing to say is closed after `HEADER_TIMEOUT_MS`.
    """

    def __init__(
        self,
        app: Any,
        host: str,
        port: int,
        *,
        tls: TlsFiles | None = None,
        max_connections: int = 8192,
        http2: bool = False,
    ) -> None:
        self._server = Server(
            app,
            address=host,
            port=port,
            interface=Interfaces.RSGI,
            task_impl=TaskImpl.asyncio,
            # To tell HTTP/2 from HTTP/1.1, granian waits for a client's first bytes without end,
            # and an HTTP/2 connection may be idle for ever; so silence would fill the table.
            http=HTTPModes.auto if http2 else HTTPModes.http1,
            websockets=False,
            backlog=BACKLOG,
            backpressure=max_connections,
            http1_settings=HTTP1Settings(
                header_read_timeout=HEADER_TIMEOUT_MS, max_buffer_size=MAX_HEADERS_BYTES
            ),
            http2_settings=HTTP2Settings(
                max_concurrent_streams=100, max_headers_size=MAX_HEADERS_BYTES
            ),
            log_enabled=False,
            ssl_cert=tls.certificate if tls else None,
            ssl_key=tls.key if tls else None,
        )
        self._serving: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._serving = asyncio.create_task(self._server.serve(), name="listener")

    def stop_accepting(self) -> None:
        """Close the port and idle connections; those with a request finish it."""
        self._server.stop()  # type: ignore[no-untyped-call]

    async def stopped(self, grace_s: float) -> None:
        """Return once every connection is closed, or after `grace_s` whatever is left."""
        assert self._serving is not None  # it was started
        _, unfinished = await asyncio.wait((self._serving,), timeout=grace_s)
        if unfinished:
            log.warning("connections left open by their clients", grace_s=grace_s)
            self._serving.cancel()
