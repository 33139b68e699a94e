"""Edge health: the state machine as timed steps, and the prober against real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.geodns.health import HealthBoard, HealthSettings
from control_plane.geodns.probes import Prober
from runtime.clock import SystemClock
from tests.geodns.worlds import snapshot
from topology.resources import EdgeSiteSpec

OK, BAD = True, False


@pytest.mark.parametrize(
    ("observed", "healthy"),
    [
        ([], True),  # never asked: healthy
        ([BAD], True),
        ([BAD, BAD], False),
        ([BAD, OK, BAD, OK, BAD], True),  # never two in a row
        ([BAD, BAD, OK, OK], False),
        ([BAD, BAD, OK, OK, OK], True),
        ([BAD, BAD, OK, OK, BAD, OK, OK], False),  # an edge that flaps stays out
        ([BAD, BAD, OK, OK, BAD, OK, OK, OK], True),
        ([OK] * 10 + [BAD, BAD], False),
    ],
)
def test_two_failures_down_three_successes_up(observed: list[bool], healthy: bool) -> None:
    board = HealthBoard(HealthSettings())
    board.keep(["tokyo"])
    for second, ok in enumerate(observed):
        board.observe("tokyo", ok, "", now=100.0 + second)
    assert (board.healthy == {"tokyo"}) == healthy


def test_it_says_since_when_and_why() -> None:
    board = HealthBoard(HealthSettings())
    board.keep(["tokyo"])
    assert not board.observe("tokyo", False, "refused", now=10.0)
    assert board.observe("tokyo", False, "timed out", now=11.0)
    state = board.edges["tokyo"]
    assert (state.healthy, state.since_s, state.detail) == (False, 11.0, "timed out")
    board.observe("tokyo", True, "", now=12.0)
    assert board.edges["tokyo"].since_s == 11.0


def test_edges_come_and_go() -> None:
    board = HealthBoard(HealthSettings(down_after=1))
    board.keep(["tokyo", "london"])
    board.observe("tokyo", False, "", now=1.0)
    board.keep(["tokyo", "sydney"])
    assert board.healthy == {"sydney"}
    assert not board.observe("london", False, "", now=2.0)  # gone in the meantime
    board.keep([])
    board.keep(["tokyo"])
    assert board.healthy == {"tokyo"}  # forgotten, so new


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 4), st.integers(1, 4))
def test_the_state_agrees_with_a_naive_reading_of_the_rule(
    observed: list[bool], down_after: int, up_after: int
) -> None:
    board = HealthBoard(HealthSettings(down_after=down_after, up_after=up_after))
    board.keep(["x"])
    healthy, last_change = True, 0
    for index, ok in enumerate(observed):
        changed = board.observe("x", ok, "", now=float(index))
        since = observed[last_change : index + 1]
        needed = down_after if healthy else up_after
        flips = len(since) >= needed and all(o != healthy for o in since[-needed:])
        if flips:
            healthy, last_change = not healthy, index + 1
        assert changed == flips
        assert bool(board.healthy) == healthy


# --- The prober --------------------------------------------------------------------------------

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], "asyncio.Future[None]"]


@asynccontextmanager
async def http(reply: bytes | None) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that sends `reply` to every request, or nothing at all; and what it was asked."""
    asked: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            if reply is None:
                await reader.read()  # until the other side gives up
            else:
                writer.write(reply)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], asked
    finally:
        server.close()
        await server.wait_closed()


QUICK = HealthSettings(interval_ms=50, timeout_ms=100, down_after=1, up_after=1)


async def verdict(port: int, addresses: tuple[str, ...] = ("127.0.0.1",)) -> tuple[bool, str]:
    """Whether an edge there counts as healthy after it was asked, and what was noted."""
    site = snapshot().edges["tokyo"]
    edges = {
        "tokyo": EdgeSiteSpec(
            city=site.city,
            latitude=site.latitude,
            longitude=site.longitude,
            jurisdiction=site.jurisdiction,
            addresses=addresses,
            port=port,
        )
    }
    prober = Prober(QUICK, lambda: None, SystemClock(), Random(1))
    prober.follow(edges)
    prober.start()
    try:
        async with asyncio.timeout(5):
            while prober.board.edges["tokyo"].asked_s is None:
                await asyncio.sleep(0.01)
        state = prober.board.edges["tokyo"]
        return state.healthy, state.detail
    finally:
        await prober.close()


@pytest.mark.parametrize(
    ("reply", "healthy", "detail"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True, ""),
        (b"HTTP/1.0 200 OK\r\n\r\n", True, ""),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False, "127.0.0.1: status 503"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", False, "127.0.0.1: status 404"),
        (b"SSH-2.0-x\r\n", False, "127.0.0.1: the answer is not HTTP"),
        (b"", False, "127.0.0.1: the answer is not HTTP"),
        (b"HTTP/1.1 200 OK", False, "127.0.0.1: the answer is not HTTP"),  # cut off
        (b"x" * 100_000, False, "127.0.0.1: "),
        (None, False, "127.0.0.1: no answer in 100 ms"),
    ],
)
async def test_only_200_in_time_is_healthy(reply: bytes | None, healthy: bool, detail: str) -> None:
    async with http(reply) as (port, asked):
        got = await verdict(port)
    assert got[0] == healthy
    assert got[1].startswith(detail)
    head = f"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    assert asked[0].startswith(head.encode())


async def test_one_ready_address_is_enough() -> None:
    async with http(b"HTTP/1.1 200 OK\r\n\r\n") as (port, _):
        assert await verdict(port, ("127.0.0.2", "127.0.0.1")) == (True, "")
        healthy, detail = await verdict(port, ("127.0.0.2", "127.0.0.3"))
    assert not healthy
    assert detail.startswith("127.0.0.2:")
    assert "; 127.0.0.3:" in detail


async def test_changes_are_told_at_once_and_health_comes_back() -> None:
    async with http(b"HTTP/1.1 200 OK\r\n\r\n") as (port, _):
        changes: list[frozenset[str]] = []
        settings = HealthSettings(
            interval_ms=50, timeout_ms=100, down_after=2, up_after=3, port=port
        )
        prober = Prober(
            settings, lambda: changes.append(prober.board.healthy), SystemClock(), Random(1)
        )
        held = snapshot().edges
        up = {name: _at(held[name], "127.0.0.1") for name in ("tokyo", "london")}
        down = up | {"london": _at(held["london"], "127.0.0.9")}
        prober.follow(down)
        prober.start()
        try:
            async with asyncio.timeout(5):
                while len(changes) < 1:
                    await asyncio.sleep(0.01)
                prober.follow(up)
                while len(changes) < 2:
                    await asyncio.sleep(0.01)
        finally:
            await prober.close()
        assert changes == [{"tokyo"}, {"tokyo", "london"}]


def _at(site: EdgeSiteSpec, address: str) -> EdgeSiteSpec:
    return EdgeSiteSpec(
        city=site.city,
        latitude=site.latitude,
        longitude=site.longitude,
        jurisdiction=site.jurisdiction,
        addresses=(address,),
    )


async def test_asking_can_be_turned_off() -> None:
    prober = Prober(HealthSettings(enabled=False), lambda: None, SystemClock(), Random(1))
    prober.follow(snapshot().edges)
    prober.start()
    await asyncio.sleep(0.05)
    assert prober.board.healthy == set(snapshot().edges)
    await prober.close()
