"""The DNS server of one process: UDP and TCP on each address, one answerer behind them."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from control_plane.geodns.answers import Answerer
from control_plane.geodns.datagrams import DatagramEndpoint, open_endpoint
from control_plane.geodns.errors import CannotListen
from control_plane.geodns.streams import StreamServer, StreamSettings

_BACKLOG = 256
_FREE_PORT_ATTEMPTS = 20


class ServerSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How to listen."""

    engine: Literal["auto", "batch", "transport"] = "auto"  # see datagrams.py
    receive_buffer_bytes: Annotated[int, Meta(ge=0)] = 4 * 2**20  # UDP; the kernel may grant less
    streams: StreamSettings = field(default_factory=StreamSettings)


class DnsServer:
    """Serves DNS on each of `listen` from `start()` to `close()`.

    Port 0 takes a free one: see `addresses`. `share_port` lets several processes listen on the
    same addresses (SO_REUSEPORT), and the kernel spread the clients over them.
    """

    def __init__(
        self,
        answerer: Answerer,
        listen: Sequence[str],
        settings: ServerSettings | None = None,
        *,
        share_port: bool = False,
    ) -> None:
        self._answerer = answerer
        self._listen = listen
        self._settings = settings or ServerSettings()
        self._share_port = share_port
        self.addresses: list[tuple[str, int]] = []
        self.datagrams: list[DatagramEndpoint] = []
        self.streams: list[StreamServer] = []

    async def start(self) -> None:
        """Raises `CannotListen`; then nothing is left open."""
        pairs: list[tuple[socket.socket, socket.socket]] = []
        try:
            for address in self._listen:
                pairs.append(self._bind(*split_host_port(address)))
        except CannotListen:
            for sock in (sock for pair in pairs for sock in pair):
                sock.close()
            raise
        for udp, tcp in pairs:
            self.addresses.append(udp.getsockname()[:2])
            self.datagrams.append(open_endpoint(udp, self._answerer, self._settings.engine))
            self.streams.append(StreamServer(tcp, self._answerer, self._settings.streams))
        for endpoint in self.datagrams:
            await endpoint.start()
        for stream in self.streams:
            await stream.start()

    async def close(self) -> None:
        for endpoint in self.datagrams:
            endpoint.close()
        await asyncio.gather(*(stream.close() for stream in self.streams))

    def _bind(self, host: str, port: int) -> tuple[socket.socket, socket.socket]:
        """A UDP and a TCP socket on one port; a free port is tried until both are free."""
        for attempt in range(_FREE_PORT_ATTEMPTS):
            udp = self._socket(host, port, socket.SOCK_DGRAM)
            try:
                return udp, self._socket(host, udp.getsockname()[1], socket.SOCK_STREAM)
            except CannotListen:
                udp.close()
                if port or attempt == _FREE_PORT_ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    def _socket(self, host: str, port: int, kind: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, kind)
        try:
            sock.setblocking(False)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if self._share_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            else:
                size = self._settings.receive_buffer_bytes
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
            sock.bind((host, port))
            if kind == socket.SOCK_STREAM:
                sock.listen(_BACKLOG)
        except OSError as error:
            sock.close()
            raise _cannot(host, port, kind, error) from error
        return sock


def split_host_port(text: str) -> tuple[str, int]:
    """`127.0.0.1:53` or `[::1]:53`."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def join_host_ports(addresses: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"[{h}]:{p}" if ":" in h else f"{h}:{p}" for h, p in addresses)


def _cannot(host: str, port: int, kind: int, error: OSError) -> CannotListen:
    protocol = "TCP" if kind == socket.SOCK_STREAM else "UDP"
    hint = "`listen` in the settings takes IP addresses of this machine"
    if error.errno == errno.EADDRINUSE:
        hint = f"another process has {protocol} port {port}; stop it, or change `listen`"
    elif error.errno == errno.EACCES:
        hint = "ports below 1024 need the capability CAP_NET_BIND_SERVICE"
    where = join_host_ports([(host, port)])
    return CannotListen(f"cannot listen on {where} ({protocol}): {error.strerror}", hint=hint)
