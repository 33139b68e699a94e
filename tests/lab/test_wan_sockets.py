"""The WAN emulator with sockets: what is sent comes out, when and if it should."""

from __future__ import annotations

import asyncio
import socket

import pytest

from lab.errors import LabError
from lab.wan import Wan, WanSettings
from lab.wan.relay import CLOCK
from tests.lab.wan_worlds import connected, round_trip_ms, silent, until, world
from topology.overlay.udp import UdpPort


async def test_the_round_trip_is_what_the_link_says() -> None:
    async with world(rtt_ms=80) as (_, client, _echo):
        times = [await round_trip_ms(client) for _ in range(5)]
        assert min(times) >= 79
        assert min(times) < 120  # the machine may be busy; the best of five is the link's own


async def test_a_burst_arrives_in_order() -> None:
    async with world(rtt_ms=20, jitter_ms=5) as (_, client, _echo):
        loop = asyncio.get_running_loop()
        sent = [index.to_bytes(4, "big") for index in range(200)]
        for data in sent:
            await loop.sock_sendall(client, data)
        got = [await asyncio.wait_for(loop.sock_recv(client, 64), 10) for _ in sent]
        assert got == sent


async def test_trains_of_datagrams_arrive_whole_and_in_order() -> None:
    """Sent with segmentation offload, as the overlay does; sizes as they come."""
    loop = asyncio.get_running_loop()
    async with world(rtt_ms=10) as (wan, _client, _echo):
        got: list[bytes] = []
        link = wan.relays["l"].link
        address = ("127.0.0.1", int(link.listen.rpartition(":")[2]))
        port = UdpPort.connect(
            loop, socket.AF_INET, address, lambda batch: got.extend(d for d, _ in batch), list
        )
        sent = [bytes([n % 256]) * (1350 if n % 7 else 200 + n) for n in range(150)]
        for start in range(0, 150, 30):
            port.send(sent[start : start + 30], None)
            await asyncio.sleep(0.01)
        await until(lambda: len(got) == len(sent))
        port.close()
        assert got == sent
        counters = wan.relays["l"].out.counters
        assert (counters.sent, counters.delivered, counters.under_way) == (150, 150, 0)
        assert counters.sent_bytes == counters.delivered_bytes == sum(map(len, sent))


async def test_a_cut_link_carries_nothing_until_it_is_mended() -> None:
    async with world(rtt_ms=5) as (wan, client, _echo):
        await round_trip_ms(client)
        wan.set("l", cut=True)
        assert await silent(client)
        wan.set("l", cut=False, rtt_ms=1)
        await round_trip_ms(client)
        assert wan.relays["l"].out.counters.cut == 1


@pytest.mark.parametrize(("direction", "heard"), [("out", 0), ("back", 1)])
async def test_one_direction_can_be_cut(direction: str, heard: int) -> None:
    async with world() as (wan, client, _echo):
        await round_trip_ms(client)
        wan.set("l", direction, cut=True)  # type: ignore[arg-type]
        assert await silent(client)
        out, back = wan.relays["l"].out.counters, wan.relays["l"].back.counters
        assert (out.delivered - 1, out.cut, back.cut) == (heard, 1 - heard, heard)


async def test_latency_of_one_direction_alone() -> None:
    async with world(rtt_ms=20) as (wan, client, _echo):
        wan.set("l", "out", latency_ms=60)
        times = [await round_trip_ms(client) for _ in range(3)]
        assert 69 <= min(times) < 110


async def test_bandwidth_holds_over_a_burst_and_the_rest_is_dropped() -> None:
    async with world() as (wan, client, _echo):
        wan.set("l", "out", bandwidth_bit_per_s=1e6, queue_ms=100)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for _ in range(50):  # 1028 bytes each, with headers: 8.2 ms on the wire
            await loop.sock_sendall(client, bytes(1000))
        got = 0
        try:
            while True:
                await asyncio.wait_for(loop.sock_recv(client, 2000), 2)
                got, last = got + 1, loop.time()
        except TimeoutError:
            pass
        counters = wan.relays["l"].out.counters
        assert got + counters.overflowed == 50
        assert 11 <= got < 50  # what the queue holds, and what left while the burst came
        assert last - begun > (got - 1) * 0.0082


async def test_changes_while_packets_flow_lose_nothing() -> None:
    async with world(rtt_ms=10) as (wan, client, _echo):
        loop = asyncio.get_running_loop()
        sent = [index.to_bytes(2, "big") for index in range(300)]
        got: list[bytes] = []

        async def read() -> None:
            while len(got) < len(sent):
                got.append(await loop.sock_recv(client, 64))

        reading = asyncio.create_task(read())
        for index, data in enumerate(sent):
            if index % 30 == 0:
                changes = [{"rtt_ms": 40}, {"jitter_ms": 3}, {"rtt_ms": 2}, {"jitter_ms": 0}]
                wan.set("l", "both", **changes[index // 30 % 4])  # type: ignore[arg-type]
            await loop.sock_sendall(client, data)
            await asyncio.sleep(0.001)
        await asyncio.wait_for(reading, 20)
        assert sorted(got) == sent


async def test_a_change_for_a_while_undoes_itself() -> None:
    async with world() as (wan, client, _echo):
        wan.set("l", for_ms=1000, cut=True)
        assert await silent(client, wait_s=0.1)
        await until(lambda: wan.relays["l"].out.impairment.up(CLOCK.now()))
        await round_trip_ms(client)
        assert wan.relays["l"].out.held.left_s(0.0) == {}


async def test_flapping_lets_some_through() -> None:
    async with world() as (wan, client, _echo):
        wan.set("l", flap={"up_ms": 100, "down_ms": 100})
        fates: set[bool] = set()
        async with asyncio.timeout(20):
            while len(fates) < 2:
                fates.add(await silent(client, wait_s=0.05))


async def test_what_is_duplicated_comes_twice() -> None:
    async with world() as (wan, client, _echo):
        wan.set("l", "back", duplicate=1)
        await round_trip_ms(client)
        loop = asyncio.get_running_loop()
        assert await asyncio.wait_for(loop.sock_recv(client, 64), 10) == b"ping"
        assert wan.relays["l"].back.counters.duplicated == 1


async def test_changes_by_pattern_and_reset() -> None:
    async with world("tokyo-a", "tokyo-b", "london-a", rtt_ms=4) as (wan, _client, _echo):
        found = wan.set("tokyo-*", loss=0.5)
        assert [relay.link.name for relay in found] == ["tokyo-a", "tokyo-b"]
        assert [r.out.held.at(0).loss for r in wan.relays.values()] == [0.5, 0.5, 0.0]
        wan.set(["london-a", "*-b"], "back", cut=True)
        assert [r.back.held.at(0).cut for r in wan.relays.values()] == [False, True, True]
        wan.reset("*")
        for relay in wan.relays.values():
            assert relay.out.held.at(0) == relay.back.held.at(0) == relay.link.figures("out")


@pytest.mark.parametrize("figures", [{"loss": 2}, {"speed": 1}, {}])
async def test_a_wrong_change_changes_nothing(figures: dict[str, object]) -> None:
    async with world("a", "b") as (wan, _client, _echo):
        with pytest.raises(LabError):
            wan.set("*", rtt_ms=50, **figures) if figures else wan.set("*")
        with pytest.raises(LabError, match="no link 'c'"):
            wan.set(["a", "c"], cut=True)
        for relay in wan.relays.values():
            assert relay.out.held.at(0) == relay.link.figures("out")


async def test_clients_that_went_away_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.wan.relay.PEER_IDLE_S", 0.05)
    async with world() as (wan, client, _echo):
        await round_trip_ms(client)
        for _ in range(3):
            await asyncio.sleep(0.1)
            with connected(wan.relays["l"].link) as other:
                await round_trip_ms(other)
            assert wan.relays["l"].clients == 1


async def test_clients_of_one_link_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.wan.relay.MAX_PEERS", 3)
    async with world() as (wan, client, _echo):
        await round_trip_ms(client)
        others = [connected(wan.relays["l"].link) for _ in range(5)]
        for other in others:
            await round_trip_ms(other)
        assert wan.relays["l"].clients == 3
        await round_trip_ms(client)  # who was forgotten is known again when it speaks
        for other in others:
            other.close()


async def test_a_dead_target_is_counted_and_its_return_noticed() -> None:
    async with world() as (wan, client, echo):
        await round_trip_ms(client)
        echo.close()
        await asyncio.sleep(0.05)
        loop, relay = asyncio.get_running_loop(), wan.relays["l"]
        async with asyncio.timeout(20):
            while not relay.refusals:
                await loop.sock_sendall(client, b"anyone?")
                await asyncio.sleep(0.05)
        await until(lambda: relay.out.counters.under_way == 0)


async def test_a_busy_address_is_named() -> None:
    async with world() as (wan, _client, _echo):
        with pytest.raises(LabError, match="cannot listen"):
            Wan(WanSettings(links=(wan.relays["l"].link,)))
