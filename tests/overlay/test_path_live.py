"""Tunnels whose way is cut, lossy or slow, over real sockets."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.identity import Identity
from tests.overlay.certificates import Authority
from tests.overlay.conftest import END, Connect, Serve, request, until
from tests.overlay.proxy import proxy
from tests.overlay.test_tunnel import ROOT, SERVER, read, served
from topology.overlay.errors import PathDown
from topology.overlay.exchange import Exchange
from topology.overlay.frames import Accept, Tokens
from topology.overlay.probe import PER_S, encode_echo, encode_probe
from topology.overlay.server import ServerExchange, ServerSettings
from topology.overlay.tunnel import Tunnel, TunnelSettings, TunnelStatus

QUICK = TunnelSettings(
    backoff_min_ms=20, backoff_max_ms=100, probe_idle_ms=200, silent_keep_ms=5000
)


def hold(exchange: ServerExchange) -> None:
    """Take the request, and think."""
    exchange.send(Accept(0.0, 0.0, "singapore", "sim"))


def talk(exchange: ServerExchange) -> None:
    """ACCEPT and a token every 20 ms, until nobody wants them."""

    def go_on(n: int) -> None:
        if not exchange.cancelled:
            exchange.send(Tokens(n, (n,), "t"))
            asyncio.get_running_loop().call_later(0.02, go_on, n + 1)

    hold(exchange)
    go_on(0)


async def fails(exchange: Exchange) -> str:
    """Why an exchange was lost."""
    with pytest.raises(PathDown) as caught:
        while True:
            await exchange.next()
    return caught.value.reason


@pytest.mark.parametrize("way", ["there", "back", "both"])
async def test_a_cut_fails_what_is_open_at_once_and_a_mended_path_needs_no_handshake(
    way: str, serve: Serve, connect: Connect
) -> None:
    server = await serve(talk)
    changes: list[TunnelStatus] = []
    async with proxy(server.port) as road:
        road.delay_s = 0.01
        tunnel = await connect(road.port, settings=QUICK, on_change=changes.append)
        await asyncio.sleep(1.0)
        exchanges = [tunnel.open(request(str(n)), b"{}") for n in range(5)]
        for exchange in exchanges:
            await exchange.next()
        for name in ("there", "back") if way == "both" else (way,):
            setattr(road, name, 1.0)
        cut = time.perf_counter()
        reasons = {await fails(exchange) for exchange in exchanges}
        took = time.perf_counter() - cut
        assert 0.1 < took < 2.5  # 0.2 s, and a busy machine
        assert len(reasons) == 1
        assert ("does not arrive" if way == "there" else "nothing comes back") in reasons.pop()
        assert not tunnel.connected
        assert tunnel.status.state == tunnel.estimate.state == "silent"
        assert tunnel.rtt_ms is None
        with pytest.raises(PathDown):
            tunnel.open(request(), b"{}")
        road.there = road.back = 0.0
        await until(lambda: tunnel.connected)
        status = tunnel.status
        assert status.connects == 1
        assert status.path_downs == status.revived >= 1
        await until(lambda: server.open_exchanges == 0)  # the region was told
        exchange = tunnel.open(request(), b"{}")
        assert isinstance(await exchange.next(), Accept)
        states = [change.state for change in changes]
        assert states[:4] == ["connecting", "connected", "silent", "connected"]
        assert all(change.estimate is not None for change in changes)
        await tunnel.close()


async def test_a_path_that_stays_silent_is_ended_and_dialled_anew(
    serve: Serve, connect: Connect
) -> None:
    server = await serve()
    settings = TunnelSettings(
        backoff_min_ms=20, backoff_max_ms=50, probe_idle_ms=100, silent_keep_ms=300,
        connect_timeout_ms=300,
    )  # fmt: skip
    async with proxy(server.port) as road:
        tunnel = await connect(road.port, settings=settings)
        road.there = road.back = 1.0
        await until(lambda: tunnel.status.connects > 1)
        assert tunnel.status.path_downs >= 1
        assert tunnel.estimate.state in ("connecting", "waiting")
        assert tunnel.estimate.rtt_ms is None
        road.there = road.back = 0.0
        await until(lambda: tunnel.connected)
        assert tunnel.status.connected == 2
        assert await read(tunnel.open(request(), b"again")) == "again"
        await tunnel.close()


async def test_loss_and_delay_are_seen_for_what_they_are(serve: Serve, connect: Connect) -> None:
    server = await serve(hold)
    async with proxy(server.port) as road:
        tunnel = await connect(road.port, settings=QUICK)
        exchange = tunnel.open(request(), b"{}")
        await exchange.next()
        road.back = 0.2
        await until(lambda: (tunnel.estimate.loss_back or 0) > 0.05, 8.0)
        assert (tunnel.estimate.loss_out or 0) < (tunnel.estimate.loss_back or 0)
        await until(lambda: "of what comes back is lost" in tunnel.estimate.why, 8.0)
        road.back = 0.0
        road.delay_s = 0.05
        await until(lambda: (tunnel.estimate.smoothed_ms or 0) > 70, 8.0)
        await until(lambda: "longer than usual" in tunnel.estimate.why, 8.0)
        await tunnel.close()


async def test_under_loss_what_is_asked_is_answered(serve: Serve, connect: Connect) -> None:
    """30% each way: exchanges may be told that the path is down, and none waits for ever."""
    server = await serve()
    async with proxy(server.port) as road:
        tunnel = await connect(road.port, settings=QUICK)
        road.there = road.back = 0.3
        answered = 0
        async with asyncio.timeout(15):
            while answered < 20:
                try:
                    assert await read(tunnel.open(request(), b"lossy")) == "lossy"
                    answered += 1
                except PathDown:
                    await asyncio.sleep(0.02)
        assert tunnel.status.connects == 1
        await tunnel.close()


async def test_a_region_that_is_stopped_and_goes_on_needs_no_handshake(
    ca: Authority, core: Identity, connect: Connect, tmp_path: Path
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
        tunnel = await connect(int(line), settings=QUICK)
        exchange = tunnel.open(request(), b"{}")
        await exchange.next()
        os.kill(process.pid, signal.SIGSTOP)
        assert "nothing comes back" in await fails(exchange)
        os.kill(process.pid, signal.SIGCONT)
        await until(lambda: tunnel.connected)
        assert tunnel.status.connects == 1
        assert tunnel.status.revived >= 1
        again = tunnel.open(request(), b"{}")
        assert isinstance(await again.next(), Accept)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


async def test_loops_that_stall_now_and_then_raise_no_alarm(serve: Serve, connect: Connect) -> None:
    """Both ends at once, for up to 100 ms, as on a machine with too few cores."""

    async def stream(exchange: ServerExchange) -> None:
        exchange.send(Accept(0.0, 0.0, "singapore", "sim"))
        for n in range(200):
            exchange.send(Tokens(n, (n,), "t"))
            await asyncio.sleep(0.01)
        exchange.send(END)

    tasks: list[asyncio.Task[None]] = []
    server = await serve(lambda e: tasks.append(asyncio.ensure_future(stream(e))))
    tunnel = await connect(server.port, settings=QUICK)
    reading = asyncio.ensure_future(read(tunnel.open(request(), b"{}")))
    for pause in (0.05, 0.1, 0.08, 0.1, 0.06):
        await asyncio.sleep(0.2)
        time.sleep(pause)
    assert await reading == "t" * 200
    assert tunnel.status.path_downs == 0


async def test_a_region_computes_for_nobody_who_has_gone(serve: Serve, connect: Connect) -> None:
    cancelled: list[int] = []

    def think(exchange: ServerExchange) -> None:
        exchange.on_cancel = lambda: cancelled.append(1)
        exchange.send(Accept(0.0, 0.0, "singapore", "sim"))

    server = await serve(think, settings=ServerSettings(peer_silent_ms=1000))
    async with proxy(server.port) as road:
        tunnel = await connect(road.port, settings=QUICK)
        exchange = tunnel.open(request(), b"{}")
        await exchange.next()
        await asyncio.sleep(2.2)
        assert cancelled == []
        road.there = 1.0
        await until(lambda: cancelled == [1], 8.0)
        assert server.counters.unheard == 1
        assert server.connections == 1
        road.there = 0.0
        await until(lambda: tunnel.connected)
        await tunnel.close()


async def test_a_path_is_not_silent_while_its_socket_is_not_read(
    serve: Serve, connect: Connect
) -> None:
    server = await serve(hold)
    async with proxy(server.port) as road:
        tunnel = await connect(road.port, settings=QUICK)
        exchange = tunnel.open(request(), b"{}")
        await exchange.next()
        assert tunnel._connection is not None
        assert tunnel._connection._watch is not None
        shell = tunnel._connection._watch._shell
        assert shell.read_now()
        read_now, shell.read_now = shell.read_now, lambda: False
        road.back = 1.0
        await asyncio.sleep(1.0)
        assert tunnel.connected
        shell.read_now = read_now
        assert "no answer" in await fails(exchange)
        await tunnel.close()


async def test_a_handlers_mistake_does_not_end_the_sweeps(serve: Serve, connect: Connect) -> None:
    def mistaken(exchange: ServerExchange) -> None:
        def fail() -> None:
            raise ZeroDivisionError("a mistake")

        exchange.on_cancel = fail

    server = await serve(mistaken, settings=ServerSettings(peer_silent_ms=1))
    tunnel = await connect(server.port, settings=QUICK)
    for count in (1, 2):
        exchange = tunnel.open(request(), b"{}")
        await until(lambda n=count: server.counters.unheard == n)  # type: ignore[misc]
        assert "heard nothing" in await fails(exchange)


async def test_an_edge_that_was_stopped_for_long_is_told_that_its_path_was_down(
    serve: Serve, connect: Connect
) -> None:
    server = await serve(hold)
    tunnel = await connect(server.port)
    exchange = tunnel.open(request(), b"{}")
    await exchange.next()
    [peer] = server._connections
    peer.let_go()
    assert "heard nothing" in await fails(exchange)
    assert tunnel.connected


async def test_an_older_region_that_takes_no_datagrams_is_asked_in_another_way(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    from topology.overlay import connection

    monkeypatch.setattr(connection.OverlayConnection, "takes_datagrams", False)
    server = await serve(hold)
    async with proxy(server.port) as road:
        tunnel = await connect(road.port, settings=QUICK)
        exchange = tunnel.open(request(), b"{}")
        await exchange.next()
        await asyncio.sleep(1.0)
        assert tunnel.estimate.state == "up"
        assert tunnel.status.path_downs == 0
        road.there = 1.0
        await fails(exchange)
        road.there = 0.0
        await until(lambda: tunnel.connected)
        assert tunnel.status.connects == 1
        await tunnel.close()


# What hostile ends do with datagrams


def shower(tunnel: Tunnel, datagrams: list[bytes]) -> None:
    connection = tunnel._connection
    assert connection is not None
    for data in datagrams:
        connection.quic.send_datagram(data)
        connection._driver.flush_now()


async def test_a_flood_of_datagrams_is_counted_and_costs_few_echoes(
    serve: Serve, connect: Connect
) -> None:
    server = await serve()
    hostile, honest = await connect(server.port), await connect(server.port)
    began = time.perf_counter()
    for start in range(0, 3000, 100):
        shower(hostile, [encode_probe(start + n) for n in range(100)])
        await asyncio.sleep(0)
    await until(lambda: server.counters.datagrams_dropped > 1000)
    seconds = time.perf_counter() - began + 2  # begun, and one more for the honest one's probes
    assert sum(p._echoes for p in server._connections) <= seconds * PER_S
    assert server.connections == 2
    await until(lambda: honest.connected)  # all of them share this loop with the flood
    assert await served(honest) == "fine"
    assert honest.status.connects == 1


async def test_datagrams_that_say_nothing_are_counted_and_ignored(
    serve: Serve, connect: Connect
) -> None:
    server = await serve()
    tunnel = await connect(server.port)
    shower(tunnel, [b"", b"\x01", b"\x02abc", b"\xff" * 40, encode_echo(1, 1, 1, True)])
    await until(lambda: server.counters.datagrams_malformed == 5)
    assert await served(tunnel) == "fine"


async def test_a_datagram_larger_than_announced_ends_its_connection_alone(
    serve: Serve, connect: Connect
) -> None:
    server = await serve()
    hostile, honest = await connect(server.port), await connect(server.port)
    shower(hostile, [b"x" * 200])
    await until(lambda: hostile.status.connected == 2)
    assert await served(honest) == "fine"
    assert honest.status.connected == 1


async def test_echoes_that_nobody_asked_for_change_nothing(serve: Serve, connect: Connect) -> None:
    server = await serve()
    tunnel = await connect(server.port)
    [peer] = server._connections
    await asyncio.sleep(0.3)
    for data in (
        b"\x02", encode_echo(2**32 - 1, 5, 5, True), encode_echo(0, 2**31, 7, True),
        encode_probe(3),
    ):  # fmt: skip
        peer.quic.send_datagram(data)
        peer.driver.flush_now()
    connection = tunnel._connection
    assert connection is not None
    watch = connection._watch
    assert watch is not None
    await until(lambda: watch.strange == 4)
    assert tunnel.estimate.state == "up"
    for n in range(1000):
        peer.quic.send_datagram(encode_echo(n, 0, 0, False))
        peer.driver.flush_now()
    await until(lambda: watch.strange > 500)
    assert tunnel.connected
    assert await served(tunnel) == "fine"
