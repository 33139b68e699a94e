"""Tunnel and server over real sockets."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
import uvloop

from runtime.identity import Identity
from tests.overlay.certificates import Authority
from tests.overlay.conftest import END, FAST, Connect, Serve, answer, request, until
from topology.overlay.errors import FrameTooLarge, OverlayProtocolError, PathDown, RegionFailure
from topology.overlay.exchange import Exchange
from topology.overlay.frames import MAX_PAYLOAD_BYTES, Accept, End, Failure, Tokens
from topology.overlay.server import OverlayServer, ServerExchange, ServerSettings
from topology.overlay.tunnel import Tunnel, TunnelSettings, TunnelStatus

ROOT = Path(__file__).parents[2]


async def read(exchange: Exchange) -> str:
    """The text of an answer, to its end."""
    text = ""
    while not isinstance(frame := await exchange.next(), End):
        text += frame.text if isinstance(frame, Tokens) else ""
    return text


async def served(tunnel: Tunnel, body: bytes = b"fine") -> str:
    """The answer to `body`, asked again while the path seems down: on a busy machine a server may
    have much in its socket before it."""
    async with asyncio.timeout(15):
        while True:
            try:
                return await read(tunnel.open(request(), body))
            except PathDown:
                await asyncio.sleep(0.05)


async def test_an_exchange_is_answered(serve: Serve, connect: Connect) -> None:
    server = await serve()
    tunnel = await connect(server.port)
    exchange = tunnel.open(request(), b"hello")
    assert await exchange.next() == Accept(1.0, 0.5, "singapore", "sim")
    assert await exchange.next() == Tokens(0, (1, 2), "hello")
    assert await exchange.next() == END
    with pytest.raises(RuntimeError):
        await exchange.next()
    assert server.counters.exchanges == tunnel.status.exchanges == 1
    await until(lambda: server.open_exchanges == tunnel.status.open_exchanges == 0)
    assert tunnel.rtt_ms is not None
    assert 0 < tunnel.rtt_ms < 500


@pytest.mark.parametrize("size", [0, 1, 1000, 70_000, 2_000_000, MAX_PAYLOAD_BYTES])
async def test_bodies_of_any_size_arrive(size: int, serve: Serve, connect: Connect) -> None:
    def length(exchange: ServerExchange) -> None:
        exchange.send(End("stop", len(exchange.body), 0, 0.0))

    server = await serve(length)
    tunnel = await connect(server.port)
    end = await tunnel.open(request(), b"b" * size).next()
    assert isinstance(end, End)
    assert end.prompt_tokens == size
    with pytest.raises(FrameTooLarge):
        tunnel.open(request(), b"b" * (MAX_PAYLOAD_BYTES + 1))


async def test_a_failure_of_the_region_is_told(serve: Serve, connect: Connect) -> None:
    failure = Failure("unknown_model", "no such model", 404, False, "model")
    server = await serve(lambda exchange: exchange.send(failure))
    exchange = (await connect(server.port)).open(request(), b"{}")
    with pytest.raises(RegionFailure) as caught:
        await exchange.next()
    assert caught.value.failure == failure
    assert not caught.value.retryable


async def test_a_handler_that_raises_becomes_a_failure(serve: Serve, connect: Connect) -> None:
    def broken(exchange: ServerExchange) -> None:
        raise ValueError("a mistake")

    server = await serve(broken)
    exchange = (await connect(server.port)).open(request(), b"{}")
    with pytest.raises(RegionFailure, match="internal"):
        await exchange.next()
    assert server.counters.handler_errors == 1


def test_two_thousand_exchanges_at_once_on_uvloop(core: Identity, edge: Identity) -> None:
    """More than the server allows as streams: the rest wait for a stream."""

    async def main() -> None:
        waiting: list[ServerExchange] = []
        server = await OverlayServer.serve("127.0.0.1", 0, core, waiting.append)
        settings = ServerSettings()
        tunnel = Tunnel("singapore", f"127.0.0.1:{server.port}", edge)
        tunnel.start()
        await until(lambda: tunnel.connected)
        count = settings.max_exchanges + 500
        exchanges = [tunnel.open(request(str(n)), b"%d" % n) for n in range(count)]
        await until(lambda: len(waiting) == settings.max_exchanges)
        assert server.open_exchanges == settings.max_exchanges
        reading = asyncio.gather(*[read(exchange) for exchange in exchanges])
        while not reading.done():
            for exchange in waiting:
                answer(exchange)
            waiting.clear()
            await asyncio.sleep(0.001)
        assert await reading == [str(n) for n in range(count)]
        await tunnel.close()
        await server.close()

    uvloop.run(asyncio.wait_for(main(), 20))


def test_nothing_is_left_of_many_exchanges(core: Identity, edge: Identity) -> None:
    async def main() -> None:
        server = await OverlayServer.serve("127.0.0.1", 0, core, answer)
        tunnel = Tunnel("singapore", f"127.0.0.1:{server.port}", edge)
        tunnel.start()
        await until(lambda: tunnel.connected)
        for _ in range(40):
            opened = [tunnel.open(request(), b"x") for _ in range(100)]
            assert set(await asyncio.gather(*map(read, opened))) == {"x"}
        [peer] = server._connections
        assert tunnel._connection is not None
        client = tunnel._connection.quic
        await until(lambda: not client._streams and not peer.quic._streams)
        assert not (client._queued or client._ready or peer.quic._queued or peer.exchanges)
        assert not (peer.arriving or tunnel._connection.exchanges)
        await tunnel.close()
        await server.close()

    uvloop.run(asyncio.wait_for(main(), 20))


async def test_too_many_exchanges_fail_at_once_instead_of_queueing(
    serve: Serve, connect: Connect
) -> None:
    server = await serve(lambda exchange: None)
    tunnel = await connect(server.port, settings=TunnelSettings(max_exchanges=10))
    for _ in range(10):
        tunnel.open(request(), b"{}")
    with pytest.raises(RegionFailure) as caught:
        await tunnel.open(request(), b"{}").next()
    assert caught.value.failure.code == "overloaded"
    assert tunnel.status.refused_locally == 1


async def test_a_cancel_reaches_the_handler_once(serve: Serve, connect: Connect) -> None:
    cancelled: list[str] = []
    held: list[ServerExchange] = []

    def hold(exchange: ServerExchange) -> None:
        exchange.on_cancel = lambda: cancelled.append(exchange.request.request_id)
        exchange.send(Accept(0.0, 0.0, "singapore", "sim"))
        held.append(exchange)

    server = await serve(hold)
    tunnel = await connect(server.port)
    first, second = tunnel.open(request("first"), b"{}"), tunnel.open(request("second"), b"{}")
    await first.next()
    await second.next()
    first.cancel()
    first.cancel()
    await until(lambda: cancelled == ["first"])
    assert server.counters.cancelled == 1
    assert held[0].cancelled
    held[0].send(END)  # nobody listens: nothing happens
    held[1].send(END)
    assert await second.next() == END
    second.cancel()
    await asyncio.sleep(0.05)
    assert cancelled == ["first"]
    assert server.open_exchanges == 0


async def test_a_cancel_before_anything_was_sent(serve: Serve, connect: Connect) -> None:
    server = await serve()
    tunnel = await connect(server.port)
    exchange = tunnel.open(request(), b"b" * 100_000)
    waiter = asyncio.ensure_future(exchange.next())
    await asyncio.sleep(0)
    exchange.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert await read(tunnel.open(request(), b"next")) == "next"
    assert tunnel.status.open_exchanges == 0


async def test_open_raises_at_once_while_there_is_no_path(connect: Connect) -> None:
    tunnel = await connect(9, wait=False)  # the discard port: nobody listens
    with pytest.raises(PathDown):
        tunnel.open(request(), b"{}")
    await until(lambda: tunnel.status.connects >= 3)
    assert "nobody listens" in tunnel.status.reason
    assert tunnel.rtt_ms is None


@pytest.mark.parametrize(
    "address",
    ["no-such-host.invalid:4433", "nonsense", "127.0.0.1:99999", "no..name:1", "x" * 64 + ".com:1"],
)
async def test_a_name_that_does_not_resolve_is_tried_again(address: str, edge: Identity) -> None:
    tunnel = Tunnel("singapore", address, edge, settings=FAST)
    tunnel.start()
    await until(lambda: tunnel.status.connects >= 2)
    assert not tunnel.connected
    await tunnel.close()


async def test_an_address_that_never_answers_times_out(edge: Identity) -> None:
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        settings = TunnelSettings(connect_timeout_ms=100, backoff_min_ms=10, backoff_max_ms=10)
        tunnel = Tunnel(
            "singapore", f"127.0.0.1:{silent.getsockname()[1]}", edge, settings=settings
        )
        tunnel.start()
        await until(lambda: tunnel.status.connects >= 3)
        assert "no answer" in tunnel.status.reason
        await tunnel.close()


async def test_closing_the_tunnel_fails_what_is_open(serve: Serve, connect: Connect) -> None:
    cancelled: list[int] = []

    def hold(exchange: ServerExchange) -> None:
        exchange.on_cancel = lambda: cancelled.append(1)

    server = await serve(hold)
    tunnel = await connect(server.port)
    exchange = tunnel.open(request(), b"{}")
    await until(lambda: server.open_exchanges == 1)
    await tunnel.close()
    with pytest.raises(PathDown):
        await exchange.next()
    assert tunnel.status.state == "closed"
    await until(lambda: cancelled == [1])
    with pytest.raises(PathDown):
        tunnel.open(request(), b"{}")
    await until(lambda: server.connections == 0)


async def test_a_tunnel_whose_task_is_cancelled_ends_in_order(
    serve: Serve, connect: Connect
) -> None:
    """As `asyncio.run` does to whatever still runs at its end."""
    server = await serve(lambda exchange: None)
    tunnel = await connect(server.port)
    exchange = tunnel.open(request(), b"{}")
    task = tunnel._task
    assert task is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(PathDown):
        await exchange.next()
    await tunnel.close()


async def test_the_server_drains_before_it_closes(serve: Serve, connect: Connect) -> None:
    held: list[ServerExchange] = []
    server = await serve(held.append)
    tunnel = await connect(server.port)
    open_one = tunnel.open(request(), b"{}")
    await until(lambda: len(held) == 1)
    closing = asyncio.ensure_future(server.close(grace_s=5.0))
    await asyncio.sleep(0.02)
    with pytest.raises(RegionFailure) as caught:
        await tunnel.open(request(), b"{}").next()
    assert caught.value.failure.code == "draining"
    assert caught.value.retryable
    assert not closing.done()
    held[0].send(END)
    assert await open_one.next() == END
    await asyncio.wait_for(closing, 1.0)
    await until(lambda: not tunnel.connected, 1.0)
    assert server.counters.drained == 1


async def test_what_outlives_the_grace_is_cut(serve: Serve, connect: Connect) -> None:
    cancelled: list[int] = []

    def hold(exchange: ServerExchange) -> None:
        exchange.on_cancel = lambda: cancelled.append(1)

    server = await serve(hold)
    exchange = (await connect(server.port)).open(request(), b"{}")
    await until(lambda: server.open_exchanges == 1)
    await server.close(grace_s=0.1)
    assert cancelled == [1]
    with pytest.raises(PathDown, match="shutting down"):
        await exchange.next()


async def test_the_tunnel_comes_back_after_a_restart(serve: Serve, connect: Connect) -> None:
    states: list[str] = []

    def note(status: TunnelStatus) -> None:
        states.append(status.state)

    first = await serve()
    port = first.port
    tunnel = await connect(port, on_change=note, rng=Random(1))
    assert await read(tunnel.open(request(), b"one")) == "one"
    await first.close()
    await until(lambda: not tunnel.connected)
    await asyncio.sleep(0.1)
    await serve(port=port)
    await until(lambda: tunnel.connected)
    assert await read(tunnel.open(request(), b"two")) == "two"
    assert tunnel.status.connected == 2
    assert tunnel.status.path_downs == 1
    assert states[:3] == ["connecting", "connected", "waiting"]


async def test_a_slow_consumer_is_bounded_and_stops_no_other(
    serve: Serve, connect: Connect
) -> None:
    text = "x" * 1000

    def flood(exchange: ServerExchange) -> None:
        for n in range(int(exchange.body)):
            exchange.send(Tokens(n, (n,), text))
        exchange.send(END)

    window = 64 * 1024
    server = await serve(flood)
    tunnel = await connect(server.port, settings=TunnelSettings(exchange_buffer_bytes=window))
    slow = tunnel.open(request(), b"2000")
    await slow.next()
    fast = tunnel.open(request(), b"300")
    assert len(await read(fast)) == 300_000
    await asyncio.sleep(0.3)
    assert slow.held_bytes <= 2 * window
    assert tunnel.status.open_exchanges == 1
    assert len(await read(slow)) == 1_999_000


async def test_an_answer_that_nobody_takes_is_cut_at_the_server(
    serve: Serve, connect: Connect
) -> None:
    cancelled: list[int] = []

    async def flood(exchange: ServerExchange) -> None:
        for n in range(10_000):
            if exchange.cancelled:
                return
            exchange.send(Tokens(n, (), "x" * 1000))
            await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []

    def on_exchange(exchange: ServerExchange) -> None:
        exchange.on_cancel = lambda: cancelled.append(1)
        tasks.append(asyncio.ensure_future(flood(exchange)))

    server = await serve(on_exchange, settings=ServerSettings(max_unsent_bytes=500_000))
    exchange = (await connect(server.port)).open(request(), b"{}")
    await until(lambda: cancelled == [1], 10.0)
    await asyncio.gather(*tasks)
    assert server.counters.overrun == 1
    with pytest.raises(OverlayProtocolError, match="reset the stream"):
        await read(exchange)


async def test_an_idle_tunnel_stays_up(serve: Serve, connect: Connect) -> None:
    server = await serve(settings=ServerSettings(idle_timeout_ms=600))
    tunnel = await connect(server.port)
    await asyncio.sleep(1.5)
    assert tunnel.connected
    assert tunnel.status.connected == 1
    assert await read(tunnel.open(request(), b"still here")) == "still here"


async def test_a_process_that_was_stopped_for_a_while_does_not_blame_the_path(
    serve: Serve, connect: Connect
) -> None:
    held: list[ServerExchange] = []
    server = await serve(held.append)
    tunnel = await connect(server.port)
    exchange = tunnel.open(request(), b"{}")
    await until(lambda: len(held) == 1)
    time.sleep(1.0)  # both ends
    held[0].send(END)
    assert await exchange.next() == END
    assert tunnel.status.path_downs == 0


SERVER = """
import asyncio, sys
from pathlib import Path
from runtime.identity import Identity, IdentityFiles
from topology.overlay.frames import Accept, Tokens
from topology.overlay.server import OverlayServer

async def stream(exchange):
    exchange.send(Accept(0.0, 0.0, "singapore", "sim"))
    for n in range(100000):
        exchange.send(Tokens(n, (n,), "t"))
        await asyncio.sleep(0.02)

async def main():
    folder = Path(sys.argv[1])
    identity = Identity.load(
        IdentityFiles(folder / "core.pem", folder / "core.key", folder / "ca.pem"))
    tasks = set()
    server = await OverlayServer.serve(
        "127.0.0.1", 0, identity, lambda e: tasks.add(asyncio.ensure_future(stream(e))))
    print(server.port, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_server_that_dies_in_mid_stream_is_noticed_in_time(
    how: signal.Signals, ca: Authority, core: Identity, connect: Connect, tmp_path: Path
) -> None:
    for name, pem in (
        ("core.pem", core.certificate_pem), ("core.key", core.key_pem), ("ca.pem", ca.pem),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(pem)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        tunnel = await connect(int(line))
        exchanges = [tunnel.open(request(str(n)), b"{}") for n in range(5)]
        for exchange in exchanges:
            await exchange.next()
            await exchange.next()
        os.kill(process.pid, how)
        died = time.perf_counter()
        for exchange in exchanges:
            with pytest.raises(PathDown):
                await read(exchange)
        assert time.perf_counter() - died < 2.5  # 0.25 s, and a busy machine
        assert not tunnel.connected
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
