"""An emulated link, an echo server behind it and a client before it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from lab.wan import Wan, WanLink, WanSettings


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def world(*names: str, **figures: Any) -> AsyncIterator[tuple[Wan, socket.socket, Any]]:
    """Links to an echo server, and a client's socket connected to the first of them, `l` if no
    other names are given."""
    loop = asyncio.get_running_loop()
    echo, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    target = f"127.0.0.1:{echo.get_extra_info('sockname')[1]}"
    links = tuple(
        WanLink(name=name, listen=f"127.0.0.1:{free_port()}", target=target, **figures)
        for name in names or ("l",)
    )
    wan = Wan(WanSettings(links=links))
    client = connected(links[0])
    try:
        yield wan, client, echo
    finally:
        client.close()
        wan.close()
        echo.close()


def connected(link: WanLink) -> socket.socket:
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.setblocking(False)
    client.connect(("127.0.0.1", int(link.listen.rpartition(":")[2])))
    return client


async def round_trip_ms(
    client: socket.socket, data: bytes = b"ping", wait_s: float = 10.0
) -> float:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await loop.sock_sendall(client, data)
    answer = await asyncio.wait_for(loop.sock_recv(client, 65_535), wait_s)
    assert answer == data
    return (loop.time() - begun) * 1000


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)


async def silent(client: socket.socket, data: bytes = b"?", wait_s: float = 0.3) -> bool:
    """Whether nothing comes back."""
    try:
        await round_trip_ms(client, data, wait_s)
    except TimeoutError:
        return True
    return False
