"""DNS over UDP: the shell around `Answerer`. It receives, looks up, sends.

Two engines with one interface. `BatchEndpoint` (Linux) takes whatever has arrived in one system
call and answers in another; `TransportEndpoint` is asyncio's own and runs anywhere.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final, Protocol

from control_plane.geodns import mmsg
from control_plane.geodns.answers import BY_ORIGIN, Answerer
from control_plane.geodns.mmsg import SLOT_BYTES, Batch

BATCH: Final = 64  # datagrams in one system call
ROUNDS: Final = 4  # batches before the event loop gets its turn


class DatagramEndpoint(Protocol):
    """Answers the datagrams of one bound, non-blocking socket from `start` to `close`."""

    async def start(self) -> None: ...

    def close(self) -> None: ...

    @property
    def dropped(self) -> int:
        """Answers that the kernel did not take."""
        ...


def open_endpoint(sock: socket.socket, answerer: Answerer, engine: str) -> DatagramEndpoint:
    """`engine`: "batch", "transport", or "auto" for the best that this machine has."""
    if engine == "batch" or (engine == "auto" and mmsg.AVAILABLE):
        return BatchEndpoint(sock, answerer)
    return TransportEndpoint(sock, answerer)


class BatchEndpoint:
    """recvmmsg, a dictionary lookup for each datagram, sendmmsg."""

    def __init__(self, sock: socket.socket, answerer: Answerer) -> None:
        self._sock = sock
        self._answerer = answerer
        self._batch = Batch(sock, BATCH)
        self._address_at = mmsg.ADDRESS_AT[sock.family]
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def dropped(self) -> int:
        return self._batch.dropped

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._sock.fileno(), self._drain)

    def close(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._loop = None
        self._sock.close()

    def _drain(self) -> None:
        for _ in range(ROUNDS):
            count = self._batch.receive()
            if count:
                self._answer(count)
                self._batch.send(count)
            if count < BATCH:
                return

    def _answer(self, count: int) -> None:
        """The hottest loop of geo-DNS: about 0.3 microseconds a datagram. Everything is local."""
        batch, answerer = self._batch, self._answerer
        data, names, reply_lengths = batch.data, batch.names, batch.reply_lengths
        first, last = self._address_at
        look_up, place = answerer.hot.young.get, answerer.origins.known.young.get
        counts, miss = answerer.tally.counts, answerer.miss
        at, name, index = 2, 0, 1
        for length in batch.lengths(count):
            key = data[at : at - 2 + length].tobytes()
            hot = look_up(key)
            if hot is None or hot is BY_ORIGIN:
                client = names[name + first : name + last].tobytes()
                if hot is not None:
                    known = place(client)
                    hot = look_up((key, known[0])) if known is not None else None
                if hot is None:
                    hot = miss(key, client)
                    look_up = answerer.hot.young.get  # a generation may have turned
            if hot is None:
                reply_lengths[index] = 0
            else:
                tail, size, slot = hot
                data[at : at - 2 + size] = tail
                reply_lengths[index] = size
                counts[slot] += 1
            at += SLOT_BYTES
            name += 32
            index += 2


class TransportEndpoint(asyncio.DatagramProtocol):
    """asyncio's datagram transport: one system call each way for each datagram.

    Bound to all addresses, it answers from whichever the kernel prefers; list addresses instead.
    """

    def __init__(self, sock: socket.socket, answerer: Answerer) -> None:
        self._sock = sock
        self._answerer = answerer
        self._transport: asyncio.DatagramTransport | None = None
        self.dropped = 0

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=self._sock)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self._transport is not None
        answerer = self._answerer
        key = data[2:]
        hot = answerer.hot.young.get(key)
        if hot is None or hot is BY_ORIGIN:
            hot = answerer.miss(key, packed_address(addr[0]))
        if hot is not None:
            tail, _, slot = hot
            self._transport.sendto(data[:2] + tail, addr)
            answerer.tally.counts[slot] += 1


def packed_address(text: str) -> bytes:
    """4 or 16 bytes of an address as a socket gives it; a scope id is left out."""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    return socket.inet_pton(family, text.partition("%")[0])
