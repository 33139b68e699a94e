"""A UDP socket that moves many datagrams per system call.

Linux coalesces equal datagrams of one flow on receipt (UDP_GRO) and cuts one large buffer into
datagrams on sending (UDP_SEGMENT, "GSO"); both are described in udp(7). Where the kernel lacks
them, one datagram per call is moved instead. Measured against asyncio's own transport in
docs/performance.md.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Callable
from typing import Any, TypeAlias

from msgspec import Struct

Address: TypeAlias = Any  # whatever the socket's family uses

_SOL_UDP = 17
_UDP_SEGMENT = 103
_UDP_GRO = 104
_ANCILLARY_BYTES = socket.CMSG_SPACE(4)
_MAX_SEGMENTS = 64  # the kernel's UDP_MAX_SEGMENTS, in kernels older than 6.9
_MAX_BATCH_BYTES = 65_000  # a UDP datagram's limit, less headers
_READS_PER_WAKEUP = 16
_BUFFER_BYTES = 4 * 2**20

Batch: TypeAlias = list[tuple[bytes, Address]]


class UdpCounters(Struct):
    """What a socket has done since it was opened."""

    datagrams_in: int = 0
    datagrams_out: int = 0
    reads: int = 0  # system calls that returned data
    writes: int = 0
    dropped: int = 0  # datagrams the kernel had no room for, or had no route for


class UdpPort:
    """A bound or connected, non-blocking UDP socket on an event loop.

    `on_batch` gets everything that one wake-up read; `on_refused` is called when the kernel
    says that nobody listens at the connected address (ICMP port unreachable).
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_batch: Callable[[Batch], None],
        on_refused: Callable[[], None] | None = None,
        read_into: bytearray | None = None,
    ) -> None:
        """`read_into`, of 64 KiB, may be shared by the ports of one loop."""
        self.counters = UdpCounters()
        self._loop = loop
        self._socket = sock
        self.local_port = int(sock.getsockname()[1])
        self._on_batch = on_batch
        self._on_refused = on_refused
        self._buffer = bytearray(65_536) if read_into is None else read_into
        self._segments = _enable(sock, _UDP_SEGMENT, 0)
        _enable(sock, _UDP_GRO, 1)
        loop.add_reader(sock.fileno(), self._readable)

    @classmethod
    def connect(
        cls,
        loop: asyncio.AbstractEventLoop,
        family: int,
        address: Address,
        on_batch: Callable[[Batch], None],
        on_refused: Callable[[], None],
        *,
        buffer_bytes: int = _BUFFER_BYTES,
        read_into: bytearray | None = None,
    ) -> UdpPort:
        """A socket that talks to `address` alone. Raises `OSError`."""
        sock = _open(family, buffer_bytes)
        try:
            sock.connect(address)
        except OSError:
            sock.close()
            raise
        return cls(loop, sock, on_batch, on_refused, read_into)

    @classmethod
    def bind(
        cls,
        loop: asyncio.AbstractEventLoop,
        family: int,
        address: Address,
        on_batch: Callable[[Batch], None],
    ) -> UdpPort:
        """A socket that listens at `address`. Raises `OSError`."""
        sock = _open(family)
        try:
            sock.bind(address)
        except OSError:
            sock.close()
            raise
        return cls(loop, sock, on_batch)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def read_now(self) -> bool:
        """Take in what has already arrived, as much as in one turn of the loop, without waiting
        for it. Whether that was all."""
        return self._socket.fileno() < 0 or self._readable()

    def _readable(self) -> bool:
        batch: Batch = []
        emptied = False
        receive, buffer, view = self._socket.recvmsg_into, [self._buffer], self._buffer
        for _ in range(_READS_PER_WAKEUP):
            try:
                size, ancillary, _, address = receive(buffer, _ANCILLARY_BYTES)
            except BlockingIOError:
                emptied = True
                break
            except OSError as error:
                if error.errno == errno.ECONNREFUSED and self._on_refused is not None:
                    self._on_refused()
                continue
            if size == 0:
                continue
            self.counters.reads += 1
            step = int.from_bytes(ancillary[0][2][:4], "little") if ancillary else size
            if step >= size:
                batch.append((bytes(view[:size]), address))
            else:
                for start in range(0, size, step):
                    batch.append((bytes(view[start : min(start + step, size)]), address))
        if batch:
            self.counters.datagrams_in += len(batch)
            self._on_batch(batch)
        return emptied

    def send(self, datagrams: list[bytes], address: Address | None) -> None:
        """Send datagrams in order, to `address`, or to the connected one when it is None.

        What the kernel refuses is counted and dropped: QUIC retransmits.
        """
        start, count = 0, len(datagrams)
        while start < count:
            stop = self._run(datagrams, start, count)
            self._write(datagrams[start:stop], address)
            start = stop

    def _run(self, datagrams: list[bytes], start: int, count: int) -> int:
        """The end of the run that one call may send: equal sizes, the last may be smaller."""
        if not self._segments:
            return start + 1
        size = len(datagrams[start])
        limit = min(count, start + min(_MAX_SEGMENTS, _MAX_BATCH_BYTES // size))
        stop = start + 1
        while stop < limit:
            this = len(datagrams[stop])
            if this > size:
                break
            stop += 1
            if this < size:
                break
        return stop

    def _write(self, run: list[bytes], address: Address | None) -> None:
        try:
            if len(run) == 1:
                if address is None:
                    self._socket.send(run[0])
                else:
                    self._socket.sendto(run[0], address)
            else:
                size = len(run[0]).to_bytes(2, "little")
                ancillary = [(_SOL_UDP, _UDP_SEGMENT, size)]
                if address is None:
                    self._socket.sendmsg(run, ancillary)
                else:
                    self._socket.sendmsg(run, ancillary, 0, address)
        except OSError as error:
            self.counters.dropped += len(run)
            if error.errno == errno.ECONNREFUSED and self._on_refused is not None:
                self._on_refused()
        else:
            self.counters.writes += 1
            self.counters.datagrams_out += len(run)


def _open(family: int, buffer_bytes: int = _BUFFER_BYTES) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    return sock


def _enable(sock: socket.socket, option: int, value: int) -> bool:
    try:
        sock.setsockopt(_SOL_UDP, option, value)
    except OSError:
        return False
    return True


async def resolve(address: str) -> tuple[socket.AddressFamily, Address]:
    """The first UDP address of "host:port". Raises `OSError`."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not (host and port.isdecimal() and int(port) <= 65535):
        raise OSError("not an address of the form host:port")
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        loop = asyncio.get_running_loop()
        try:
            infos = await loop.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)
        except UnicodeError as error:  # an empty label, or one of more than 63 characters
            raise OSError(f"not a host name: {host[:64]!r}") from error
        family, _, _, _, found = infos[0]
        return family, found
    if version == 6:
        return socket.AF_INET6, (host, int(port), 0, 0)
    return socket.AF_INET, (host, int(port))
