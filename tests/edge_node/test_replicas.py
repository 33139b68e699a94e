"""Several cores of one region: which are connected, which is asked, and what becomes of a request
whose core dies or fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, cast

import msgspec
import pytest

from edge_node.forward import cores, retired
from edge_node.forward.cores import MOST, SPARE_MAX_S
from edge_node.forward.outliers import PROBE_S, STALL_HOLD_S
from edge_node.forward.replicas import STALL_S, Replicas
from tests.edge_node.roads import ASK, FakeTunnel, Roads, until
from tests.edge_node.worlds import snapshot
from tests.topology.worlds import document, region
from topology.overlay.errors import OverlayProtocolError, PathDown, RegionFailure
from topology.overlay.frames import End, Failure, Request
from topology.snapshot import Snapshot

NAME = "frankfurt"
ENGINE = RegionFailure(NAME, Failure("engine", "broken", 500, True))
FULL = RegionFailure(NAME, Failure("overloaded", "full", 503, True))
CLOSING = RegionFailure(NAME, Failure("draining", "closing", 503, True))
LATE = RegionFailure(NAME, Failure("deadline", "late", 504, False))


def cored(count: int, *extra: dict[str, Any], first: int = 1) -> Snapshot:
    found = region(NAME, "EU")
    found["spec"]["cores"] = [f"10.0.0.{n}:1" for n in range(first, first + count)]
    return snapshot(found, *extra)


class Scripted:
    """An exchange that does as it is told, once."""

    def __init__(self, tunnel: FakeTunnel) -> None:
        self.tunnel = tunnel
        self.outcome: Any = End("stop", 1, 1, 0.0)
        tunnel.open_exchanges += 1

    async def next(self) -> Any:
        self.tunnel.open_exchanges -= 1
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    async def pour(self, take: Any) -> Any:
        return await self.next()

    def cancel(self) -> None:
        self.tunnel.open_exchanges -= 1


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Roads]:
    monkeypatch.setattr(retired, "CHECK_S", 0.02)

    def opened(tunnel: FakeTunnel, request: Request, body: bytes) -> Any:
        if not (tunnel.connected or tunnel.state == "stalled"):
            raise PathDown(tunnel.region, tunnel.why)
        tunnel.requests += 1
        return Scripted(tunnel)

    monkeypatch.setattr(FakeTunnel, "open", opened)
    world = Roads()
    yield world
    for tunnel in world.made:
        tunnel.open_exchanges = 0
    await world.tunnels.close()


def direct(world: Roads) -> Replicas:
    return cast(Replicas, world.path(NAME, ""))


def begun(world: Roads, count: int, *extra: dict[str, Any]) -> list[FakeTunnel]:
    """So many cores, all of them connected that are to be."""
    world.tunnels.use(cored(count, *extra))
    for tunnel in world.of(NAME):
        tunnel.rtt_ms = 18.0
        tunnel.become("up")
    return world.of(NAME)


def send(world: Roads, request_id: str = "r", attempt: int = 1) -> Any:
    ask = msgspec.structs.replace(ASK, request_id=request_id, attempt=attempt)
    return world.tunnels.open(NAME, ask, b"")


def core_of(exchange: Any) -> FakeTunnel:
    return cast(FakeTunnel, exchange._exchange.tunnel)


async def fail(exchange: Any, error: Exception = ENGINE) -> Exception:
    exchange._exchange.outcome = error
    with pytest.raises((PathDown, RegionFailure, OverlayProtocolError)) as caught:
        await exchange.next()
    return caught.value


async def fails_at(world: Roads, tunnel: FakeTunnel, times: int = 1) -> None:
    """So many requests fail at that core, and others are answered."""
    number = 0
    while times:
        exchange = send(world, f"f{tunnel.address}{number}")
        number += 1
        if core_of(exchange) is tunnel:
            await fail(exchange)
            times -= 1
        else:
            await exchange.next()


# Which are connected


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 5, 9])
async def test_up_to_four_are_connected(world: Roads, cores: int) -> None:
    tunnels = begun(world, cores)
    assert len(tunnels) == min(cores, MOST)
    assert direct(world).several is (cores > 1)
    assert world.tunnels.views()[NAME].cores == min(cores, MOST)
    assert world.reachable(NAME)


async def test_a_links_address_is_one(world: Roads) -> None:
    link = document(
        "Link",
        "london-frankfurt",
        source="EdgeSite/london",
        target=f"Region/{NAME}",
        rtt_ms=18,
        address="10.9.9.9:1",
    )
    (tunnel,) = begun(world, 6, link)
    assert tunnel.address == "10.9.9.9:1"
    assert not direct(world).several


async def test_workers_begin_with_different_cores(world: Roads) -> None:
    begun(world, 6)
    for worker, expected in ((0, "1234"), (1, "2345"), (4, "5612"), (7, "2345")):
        other = Roads(worker)
        other.tunnels.use(cored(6))
        assert "".join(t.address[7] for t in other.of(NAME)) == expected
        await other.tunnels.close()


async def test_one_core_costs_no_more_than_its_tunnel(world: Roads) -> None:
    begun(world, 1)
    assert isinstance(send(world), Scripted)


async def test_a_spare_takes_the_place_of_one_that_is_lost(world: Roads) -> None:
    tunnels = begun(world, 6)
    tunnels[1].become("silent")
    assert world.reachable(NAME)
    await until(lambda: len(world.of(NAME)) == 5)
    spare = world.of(NAME)[4]
    assert spare.address in ("10.0.0.5:1", "10.0.0.6:1")
    assert not tunnels[1].closed
    spare.become("up")
    await until(lambda: tunnels[1].closed)
    assert direct(world).live == 4
    # And the first comes back as a spare when it is needed.
    tunnels[0].become("silent")
    spare.become("silent")
    await until(lambda: len(world.of(NAME)) >= 6)
    assert len({t.address for t in world.of(NAME) if not t.closed}) >= 5


async def test_one_that_returns_before_its_spare_stays(world: Roads) -> None:
    tunnels = begun(world, 5)
    tunnels[1].become("silent")
    await until(lambda: len(world.of(NAME)) == 5)
    spare = world.of(NAME)[4]
    tunnels[1].become("up")
    await until(lambda: spare.closed)
    assert direct(world).live == 4
    assert not any(t.closed for t in tunnels)


async def test_without_spares_one_waits_for_its_return(world: Roads) -> None:
    tunnels = begun(world, 3)
    for tunnel in tunnels:
        tunnel.become("silent")
    assert not world.reachable(NAME)
    await asyncio.sleep(0.05)
    assert len(world.of(NAME)) == 3
    tunnels[2].become("up")
    assert world.reachable(NAME)
    assert core_of(send(world)) is tunnels[2]


async def test_spares_that_refuse_at_once_are_not_tried_without_a_pause(world: Roads) -> None:
    tunnels = begun(world, 9)
    loop = asyncio.get_running_loop()
    began = loop.time()
    for tunnel in tunnels:
        tunnel.become("waiting")
    most = 0
    while (lasted := loop.time() - began) < 1.0:
        for tunnel in world.of(NAME)[4:]:
            if not tunnel.closed and tunnel.state == "connecting":
                tunnel.become("waiting")
        most = max(most, direct(world).kept)
        await asyncio.sleep(0.005)
    assert 3 <= len(world.of(NAME)) - 4 <= 6 + lasted / SPARE_MAX_S
    assert most <= 2 * MOST


async def test_other_cores_are_connected_before_the_old_are_let_go(world: Roads) -> None:
    old = begun(world, 3)
    world.tunnels.use(cored(3, first=3))  # one of them stays
    made = world.of(NAME)
    assert [t.address for t in made[3:]] == ["10.0.0.4:1", "10.0.0.5:1"]
    await asyncio.sleep(0.05)
    assert not any(t.closed for t in made)
    made[3].become("up")
    made[4].become("up")
    await until(lambda: old[0].closed and old[1].closed)
    assert not old[2].closed
    assert direct(world).live == 3


async def test_all_of_the_old_serve_until_one_of_the_new_does(world: Roads) -> None:
    old = begun(world, 4)
    for first in (11, 21, 31):  # and nothing adds up
        world.tunnels.use(cored(1, first=first))
    await asyncio.sleep(0.05)
    assert [t.closed for t in world.of(NAME)] == [False] * 4 + [True, True, False]
    assert world.tunnels.views()[NAME].cores == 4
    assert {core_of(send(world)) for _ in range(40)} == set(old)
    for tunnel in old:
        tunnel.open_exchanges = 0
    world.of(NAME)[-1].become("up")
    await until(lambda: all(t.closed for t in old))
    assert not direct(world).several


async def test_from_several_to_one_and_back(world: Roads) -> None:
    old = begun(world, 3)
    world.tunnels.use(cored(1))
    await until(lambda: old[1].closed and old[2].closed)
    assert not old[0].closed
    assert not direct(world).several
    world.tunnels.use(cored(2))
    assert direct(world).several
    assert world.reachable(NAME)


# Which is asked


async def test_the_one_with_fewer_open_exchanges_is_asked(world: Roads) -> None:
    tunnels = begun(world, 2)
    tunnels[0].open_exchanges = 3
    for _ in range(3):
        assert core_of(send(world)) is tunnels[1]
    counts = Counter(core_of(send(world)).address for _ in range(400))
    assert abs(counts["10.0.0.1:1"] - counts["10.0.0.2:1"]) <= 2


async def test_load_is_even_among_four(world: Roads) -> None:
    tunnels = begun(world, 4)
    for _ in range(400):
        send(world)
    held = [tunnel.open_exchanges for tunnel in tunnels]
    assert max(held) - min(held) <= 6


async def test_dead_ones_are_left_out(world: Roads) -> None:
    tunnels = begun(world, 3)
    tunnels[0].become("silent")
    tunnels[1].become("stalled")
    assert {core_of(send(world)) for _ in range(20)} == {tunnels[2]}
    tunnels[2].become("waiting")
    assert not world.reachable(NAME)
    assert core_of(send(world)) is tunnels[1]  # better than nothing
    tunnels[1].become("silent")
    with pytest.raises(PathDown):
        send(world)


async def test_one_that_died_unseen_is_passed_over(world: Roads) -> None:
    tunnels = begun(world, 2)
    tunnels[0].state = "waiting"  # and nobody was told
    for _ in range(8):
        assert core_of(send(world)) is tunnels[1]


# Which is left alone


async def test_a_core_that_fails_is_ejected_and_the_region_goes_on(world: Roads) -> None:
    tunnels = begun(world, 3)
    await fails_at(world, tunnels[0], 5)
    for number in range(50):
        exchange = send(world, f"x{number}")
        assert core_of(exchange) is not tunnels[0]
        await exchange.next()
    assert world.reachable(NAME)
    assert "10.0.0.1:1 is left alone (5 requests failed" in seen_why(world)
    # It is tried with one, and then slowly taken back.
    world.clock.advance(31.0)
    world.tunnels.views()
    open_ones = [send(world, f"y{number}") for number in range(50)]
    probes = [e for e in open_ones if core_of(e) is tunnels[0]]
    assert len(probes) == 1
    await probes[0].next()
    for each in open_ones:
        if each is not probes[0]:
            await each.next()
    counts = []
    for _ in range(12):
        before = tunnels[0].requests
        for number in range(300):
            await send(world, f"z{number}").next()
        counts.append(tunnels[0].requests - before)
        world.clock.advance(1.0)
        world.tunnels.views()
    assert counts[0] < 45
    assert counts[0] < counts[4] < counts[-1]
    assert counts[-1] > 70


def seen_why(world: Roads) -> str:
    world.tunnels.views()
    (told,) = (r for r in world.tunnels.seen() if r.region == NAME and r.relay == "")
    return told.why


async def test_heartbeats_sum_up_the_cores(world: Roads) -> None:
    tunnels = begun(world, 3)
    tunnels[1].rtt_ms = 9.0
    world.clock.advance(1.0)
    for _ in range(9):
        send(world)
    world.tunnels.views()
    (told,) = (r for r in world.tunnels.seen() if r.region == NAME and r.relay == "")
    assert (told.exchanges, told.measured_rtt_ms, told.state) == (9, 9.0, "up")
    assert "cores" not in told.why
    tunnels[1].become("silent")
    world.tunnels.views()
    (told,) = (r for r in world.tunnels.seen() if r.region == NAME and r.relay == "")
    assert (told.exchanges, told.measured_rtt_ms, told.up) == (9, 18.0, True)
    assert "2 of 3 cores" in told.why


async def test_more_than_half_of_the_cores_are_never_left_alone(world: Roads) -> None:
    tunnels = begun(world, 3)
    await fails_at(world, tunnels[0], 5)
    for number in range(5):
        while core_of(exchange := send(world, f"g{number}")) is not tunnels[1]:
            await exchange.next()
        await fail(exchange)
    asked = {core_of(send(world)).address for _ in range(60)}
    assert len(asked) == 3
    assert world.reachable(NAME)


async def test_a_region_is_to_blame_when_all_of_its_cores_are(world: Roads) -> None:
    begun(world, 3)
    failed: set[str] = set()
    for number in range(60):
        exchange = send(world, f"n{number}")
        failed.add(core_of(exchange).address)
        await fail(exchange)
        world.tunnels.fault(NAME, "it answered 500, engine", f"n{number}")
        if len(failed) < 3:
            assert world.reachable(NAME)
    assert len(failed) == 3
    assert not world.reachable(NAME)
    assert world.tunnels.doubted(NAME)


@pytest.mark.parametrize("error", [FULL, LATE, PathDown(NAME, "it was cut")])
async def test_no_room_no_time_and_a_cut_are_no_faults(world: Roads, error: Exception) -> None:
    begun(world, 3)
    for number in range(60):
        assert await fail(send(world, f"n{number}"), error) is error
    assert not direct(world).outliers


async def test_silence_is_the_fault_of_the_core_that_was_asked(world: Roads) -> None:
    tunnels = begun(world, 3)
    for number in range(30):
        exchange = send(world, f"s{number}")
        if core_of(exchange) is tunnels[2]:
            world.tunnels.fault(NAME, "it took a request and gave nothing", f"s{number}")
            exchange.cancel()
        else:
            await exchange.next()
    assert list(direct(world).left_alone()) == ["10.0.0.3:1"]
    assert world.reachable(NAME)
    assert direct(world)._open == {}


async def test_one_core_that_closes_is_the_death_of_a_way(world: Roads) -> None:
    tunnels = begun(world, 2)
    exchange = send(world, "c")
    closing = core_of(exchange)
    assert isinstance(await fail(exchange, CLOSING), PathDown)
    (other,) = (t for t in tunnels if t is not closing)
    for _ in range(10):
        assert core_of(send(world)) is other
    other.become("silent")
    assert isinstance(await fail(send(world, "d"), CLOSING), RegionFailure)
    world.clock.advance(STALL_HOLD_S + PROBE_S)


async def test_what_a_core_that_stands_still_has_may_go_on_elsewhere(world: Roads) -> None:
    tunnels = begun(world, 3)
    for number in range(12):
        send(world, f"q{number}")
    here = {i for i, core in direct(world)._open.items() if core.tunnel is tunnels[0]}
    assert here
    tunnels[0].become("stalled")
    assert world.tunnels.stuck() == []  # it may only have paused
    world.clock.advance(STALL_S)
    assert set(world.tunnels.stuck()) == here
    tunnels[0].become("up")
    assert world.tunnels.stuck() == []
    for tunnel in tunnels:
        tunnel.become("stalled")
    world.clock.advance(2 * STALL_S)
    assert world.tunnels.stuck() == []  # that is the region's matter: there is nowhere to go


async def test_a_request_that_comes_again_goes_to_another_core(world: Roads) -> None:
    begun(world, 3)
    for number in range(30):
        tried = set()
        for attempt in (1, 2, 3):
            exchange = send(world, f"a{number}", attempt)
            assert core_of(exchange) not in tried
            tried.add(core_of(exchange))
            await fail(exchange, PathDown(NAME, "it was cut"))


async def test_nothing_is_left_alone_where_nothing_protects(world: Roads) -> None:
    tunnels = begun(world, 3, document("Policy", "default", overload={"protect": False}))
    await fails_at(world, tunnels[0], 12)
    for number in range(12):
        world.tunnels.fault(NAME, "it answered 500, engine", f"p{number}")
    assert not direct(world).left_alone()
    assert world.reachable(NAME)


async def test_what_is_kept_of_requests_is_bounded(
    world: Roads, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(world, 2)
    for number in range(3 * cores.REMEMBERED):
        await fail(send(world, f"b{number}"), PathDown(NAME, "cut"))
    kept = [len(core.failed) for core in direct(world)._cores.values()]
    assert max(kept) <= cores.REMEMBERED
    assert direct(world)._open == {}
