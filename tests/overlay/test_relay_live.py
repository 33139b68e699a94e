"""An edge reaches one region through another one's core: real sockets, real handshakes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from runtime.identity import Identity
from tests.overlay.certificates import Authority
from tests.overlay.conftest import END, FAST, Serve, answer, request, until
from tests.overlay.test_hostile import raw
from tests.overlay.test_tunnel import read, served
from tests.overlay.test_wan_path import link
from topology.overlay.errors import PathDown, RegionFailure
from topology.overlay.frames import Accept, Body, End, Relay, Relayed, Tokens, encode
from topology.overlay.relay import HEAD, Binding, RelaySettings, UdpRelay
from topology.overlay.server import OverlayServer, ServerExchange, ServerSettings
from topology.overlay.session import request_bytes
from topology.overlay.tunnel import Tunnel
from topology.overlay.udp import Batch
from topology.overlay.via import Bound


class World:
    """Dubai's core relays to Frankfurt's; tunnels that are closed at the end."""

    def __init__(self, serve: Serve, ca: Authority, edge: Identity) -> None:
        self._serve, self._ca, self.edge = serve, ca, edge
        self.map: dict[str, str] = {}  # what dubai knows
        self._tunnels: list[Tunnel] = []
        self.frankfurt: OverlayServer
        self.dubai: OverlayServer

    async def start(
        self, on_exchange: Callable[[ServerExchange], None] = answer, **settings: Any
    ) -> World:
        self.frankfurt = await self.core("frankfurt", on_exchange)
        self.map["frankfurt"] = f"127.0.0.1:{self.frankfurt.port}"
        self.dubai = await self.relaying(**settings)
        return self

    async def core(
        self, name: str, on_exchange: Callable[[ServerExchange], None] = answer, **options: Any
    ) -> OverlayServer:
        return await self._serve(on_exchange, identity=self._ca.issue("core", name), **options)

    async def relaying(self, port: int = 0, **settings: Any) -> OverlayServer:
        return await self.core(
            "dubai", port=port, route=lambda region, turn: self.map.get(region),
            relay=RelaySettings(**settings),
        )  # fmt: skip

    def tunnel(
        self, region: str, address: str, identity: Identity | None = None, **more: Any
    ) -> Tunnel:
        settings = more.pop("settings", FAST)
        tunnel = Tunnel(region, address, identity or self.edge, settings=settings, **more)
        self._tunnels.append(tunnel)
        tunnel.start()
        return tunnel

    async def direct(self, port: int = 0, **more: Any) -> Tunnel:
        tunnel = self.tunnel("dubai", f"127.0.0.1:{port or self.dubai.port}", **more)
        await until(lambda: tunnel.connected)
        return tunnel

    def relayed(self, via: Tunnel, region: str = "frankfurt") -> Tunnel:
        return self.tunnel(region, "via dubai", via=via)

    async def both(self) -> tuple[Tunnel, Tunnel]:
        direct = await self.direct()
        relayed = self.relayed(direct)
        await until(lambda: relayed.connected)
        return direct, relayed

    @property
    def relay(self) -> UdpRelay:
        assert self.dubai.relay is not None
        return self.dubai.relay

    async def close(self) -> None:
        for tunnel in reversed(self._tunnels):
            await tunnel.close()


@pytest.fixture
async def world(serve: Serve, ca: Authority, edge: Identity) -> AsyncIterator[World]:
    made = World(serve, ca, edge)
    yield made
    await made.close()


def hold(exchange: ServerExchange) -> None:
    """An answer that begins and does not end."""
    exchange.send(Accept(0.0, 0.0, "frankfurt", "sim"))
    exchange.send(Tokens(0, (1,), "a"))


async def test_requests_pass_and_the_relay_sees_ciphertext_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.start()
    passed: list[bytes] = []
    pick = world.relay.pick

    def tap(batch: Batch, now: float) -> Batch:
        passed.extend(data for data, _ in batch)
        return pick(batch, now)

    monkeypatch.setattr(world.relay, "pick", tap)
    _, relayed = await world.both()
    bodies = [b"secret %d " % n * 300 for n in range(30)]
    answers = await asyncio.gather(*[read(relayed.open(request(), body)) for body in bodies])
    assert answers == [body.decode() for body in bodies]
    assert relayed.peer is not None
    assert str(relayed.peer.name) == "frankfurt"
    assert world.frankfurt.counters.exchanges == 30
    assert world.dubai.counters.exchanges == 0
    assert world.relay.counters.forwarded > 30
    assert not [data for data in passed if b"secret" in data]
    assert max(map(len, passed)) <= FAST.max_datagram_bytes  # no larger than direct ones


async def test_a_core_may_dial_through_a_relay_too(world: World, ca: Authority) -> None:
    await world.start()
    core = ca.issue("core", "singapore")
    direct = await world.direct(identity=core)
    relayed = world.tunnel("frankfurt", "via dubai", core, via=direct)
    await until(lambda: relayed.connected)
    assert await read(relayed.open(request(), b"core")) == "core"


async def test_a_relay_that_leads_elsewhere_is_found_out(world: World) -> None:
    await world.start()
    elsewhere = await world.core("singapore")
    world.map["frankfurt"] = f"127.0.0.1:{elsewhere.port}"
    relayed = world.relayed(await world.direct())
    await until(lambda: "is no core of frankfurt" in relayed.status.reason)
    world.map["frankfurt"] = f"127.0.0.1:{world.dubai.port}"  # to itself, of all places
    await until(lambda: "core/dubai is no core of frankfurt" in relayed.status.reason)
    assert relayed.status.connected == 0
    assert elsewhere.counters.exchanges == world.dubai.counters.exchanges == 0


async def test_refusals_have_a_reason_and_the_tunnel_tries_again(world: World) -> None:
    await world.start(max_bindings_per_peer=1, gives_way_ms=60_000)
    direct = await world.direct()
    lost = world.relayed(direct, "atlantis")
    await until(lambda: "knows no way to a core of 'atlantis'" in lost.status.reason)
    assert not lost.connected
    with pytest.raises(RegionFailure) as caught:
        await direct.bind("atlantis", 0)
    assert caught.value.failure.reason == "relay_unknown_region"
    assert caught.value.failure.status == 404
    await direct.bind("frankfurt", 0)
    full = world.relayed(direct)
    await until(lambda: "relays for as many as it may" in full.status.reason)
    world.dubai._draining = True
    with pytest.raises(RegionFailure, match="draining"):
        await direct.bind("frankfurt", 0)
    world.dubai._draining = False
    world.relay.close()
    await until(lambda: full.connected)


async def test_a_server_without_a_route_relays_nothing(world: World, serve: Serve) -> None:
    await world.start()
    direct = world.tunnel("frankfurt", world.map["frankfurt"])
    await until(lambda: direct.connected)
    with pytest.raises(RegionFailure, match="relays nothing"):
        await direct.bind("dubai", 0)


async def test_a_core_may_be_told_to_relay_nothing(world: World) -> None:
    await world.start(max_bindings=0)
    with pytest.raises(RegionFailure, match="relays nothing"):
        await (await world.direct()).bind("frankfurt", 0)


async def test_an_unused_binding_lapses_and_probes_keep_one_that_is_idle(world: World) -> None:
    await world.start(idle_ms=2000)
    direct, relayed = await world.both()
    await direct.bind("frankfurt", 0)
    assert world.relay.bindings == 2
    await until(lambda: world.relay.bindings == 1, 10.0)
    await asyncio.sleep(2.5)
    assert relayed.status.path_downs == 0
    assert await read(relayed.open(request(), b"still")) == "still"
    assert world.relay.counters.bound == 2


async def test_a_way_cannot_be_asked_for_through_a_relay_or_a_tunnel_that_is_down(
    world: World,
) -> None:
    await world.start()
    direct, relayed = await world.both()
    with pytest.raises(PathDown, match="through a relay itself"):
        await relayed.bind("dubai", 0)
    await direct.close()
    with pytest.raises(PathDown, match="closed"):
        await direct.bind("frankfurt", 0)
    late = world.relayed(direct)
    await until(lambda: "not relayed: no path to dubai" in late.status.reason)
    assert "\n" not in late.status.reason


async def test_a_relay_that_restarts_is_bound_to_anew(world: World) -> None:
    await world.start(hold)
    direct, relayed = await world.both()
    port, old = world.dubai.port, world.relay.counters
    exchange = relayed.open(request(), b"{}")
    assert isinstance(await exchange.next(), Accept)
    world.dubai.udp.close()  # as a process that is killed: nobody is told
    world.relay.close()
    died = time.perf_counter()
    with pytest.raises(PathDown):
        while True:
            await exchange.next()
    assert time.perf_counter() - died < 3.0
    assert old.bound == 1
    world.dubai = await world.relaying(port)
    await until(lambda: direct.connected and relayed.connected, 15.0)
    assert world.relay.counters.bound >= 1
    assert isinstance(await relayed.open(request(), b"{}").next(), Accept)


async def test_a_destination_that_dies_behind_a_relay_is_noticed(world: World) -> None:
    await world.start(hold)
    _, relayed = await world.both()
    exchange = relayed.open(request(), b"{}")
    await exchange.next()
    world.frankfurt.udp.close()
    with pytest.raises(PathDown):
        while True:
            await exchange.next()


async def test_another_core_of_the_region_is_tried_in_turn(world: World) -> None:
    await world.start()
    turns: list[int] = []

    def route(region: str, turn: int) -> str:
        turns.append(turn)
        return "127.0.0.1:1" if turn % 2 else world.map["frankfurt"]

    world.relay._route = route
    quick = replace(FAST, connect_timeout_ms=1000)
    relayed = world.tunnel(
        "frankfurt", "via dubai", via=await world.direct(), turn=1, settings=quick
    )
    await until(lambda: relayed.connected, 15.0)
    asked = turns[::2]  # once more when the name is resolved
    assert asked == turns[1::2] == list(range(1, 1 + len(asked)))
    assert asked[-1] % 2 == 0


async def test_the_region_may_ask_for_a_proof_of_address_behind_a_relay(
    world: World,
) -> None:
    await world.start()
    world.frankfurt.settings = ServerSettings(max_handshakes=2)
    world.frankfurt._handshakes += 1  # somebody is half-way
    _, relayed = await world.both()
    world.frankfurt._handshakes -= 1
    assert await read(relayed.open(request(), b"retried")) == "retried"
    assert world.frankfurt.counters.retries >= 1  # more where a busy machine is slow to answer


async def test_loss_on_both_legs_loses_nothing(world: World) -> None:
    await world.start()
    async with link(world.frankfurt.port, rtt_ms=10, loss=0.05) as (_, second):
        world.map["frankfurt"] = f"127.0.0.1:{second}"
        async with link(world.dubai.port, rtt_ms=10, loss=0.05, jitter_ms=3) as (_, first):
            direct = await world.direct(first)
            relayed = world.relayed(direct)
            await until(lambda: relayed.connected, 10.0)
            bodies = [b"%d" % n * 400 for n in range(30)]
            answers = [read(relayed.open(request(), body)) for body in bodies]
            assert await asyncio.gather(*answers) == [body.decode() for body in bodies]
            assert relayed.rtt_ms is not None
            assert 18 < relayed.rtt_ms < 100
            await world.close()


async def test_a_reader_that_stops_holds_the_region_back_and_not_the_relay(
    world: World,
) -> None:
    unsent: list[int] = []

    def pour(exchange: ServerExchange) -> None:
        exchange.send(Accept(0.0, 0.0, "frankfurt", "sim"))
        for n in range(40):
            exchange.send(Tokens(n, (1,), "x" * 50_000))
        exchange.send(END)

    await world.start(pour)
    _, relayed = await world.both()
    exchange = relayed.open(request(), b"{}")
    window = FAST.exchange_buffer_bytes
    await until(lambda: exchange.held_bytes > window * 0.9)
    await asyncio.sleep(0.2)
    assert exchange.held_bytes <= window
    counters = world.relay.counters
    passed = counters.returned_bytes
    assert passed < window * 1.5  # the rest of two megabytes waits in frankfurt
    [peer] = world.frankfurt._connections
    unsent.append(peer.quic.unacknowledged_bytes(exchange._stream_id))
    assert unsent[0] > 1_500_000
    other = relayed.open(request(), b"{}")
    assert isinstance(await other.next(), Accept)  # and nobody else does
    text = ""
    while not isinstance(frame := await exchange.next(), End):
        text += frame.text if isinstance(frame, Tokens) else ""
    assert len(text) == 2_000_000


async def test_relays_cannot_be_chained_into_a_loop(
    world: World, ca: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member of the mesh binds dubai -> frankfurt and, through it, frankfurt -> dubai."""
    await world.start()
    frankfurt = await world.core(
        "frankfurt", route=lambda region, turn: f"127.0.0.1:{world.dubai.port}"
    )
    world.map["frankfurt"] = f"127.0.0.1:{frankfurt.port}"
    direct, relayed = await world.both()
    monkeypatch.setattr(relayed, "_via", None)  # it does what our own tunnels refuse to do
    out = await direct.bind("frankfurt", 0)
    back = await relayed.bind("dubai", 0)
    assert back.family is out.family
    assert frankfurt.relay is not None
    before = world.relay.counters.forwarded, frankfurt.relay.counters.forwarded
    there, here = HEAD + out.binding, HEAD + back.binding
    connection = relayed._connection
    assert connection is not None
    connection.port.send([(there + here) * 60 + b"\x40 around and around"], None)
    connection.port.send([there + here + b"\x40 once"], None)
    await until(lambda: world.relay.counters.dropped_not_quic == 2)
    assert frankfurt.relay.counters.forwarded == before[1]
    assert await served(relayed) == "fine"


async def test_strangers_and_wrong_heads_disturb_nothing(world: World) -> None:
    await world.start()
    _, relayed = await world.both()
    connection = relayed._connection
    assert connection is not None
    for n in range(200):
        connection.port.send([HEAD + os.urandom(8) + os.urandom(n)], None)
        [binding] = world.relay._bindings.values()
        world.dubai.udp.send([HEAD + os.urandom(8) + b"\x40x", b"\x40" * 30], binding.address)
    assert await served(relayed) == "fine"
    assert connection.strays == 400
    assert world.relay.counters.dropped_unbound == 200
    assert relayed.status.path_downs == 0


@pytest.mark.parametrize(
    ("data", "fin"),
    [
        (encode(Relay("frankfurt", 0)) * 2, True),
        (encode(Relay("frankfurt", 0)) + encode(Body(b"{}")), True),
        (request_bytes(request(), b"{}") + encode(Relay("frankfurt", 0)), True),
        (encode(Relayed(bytes(8), 1)), True),
        (encode(Relay("frankfurt", 0))[:-1], True),
        (b"\x07\x05\x92\xa1x\xff\xff", False),  # a turn below zero
    ],
)
async def test_a_relay_that_is_not_asked_for_properly_resets_the_stream(
    data: bytes, fin: bool, world: World
) -> None:
    await world.start()
    direct = await world.direct()
    raw(direct, data, fin)
    await until(lambda: world.dubai.counters.protocol_errors == 1)
    assert world.relay.bindings == 0
    assert isinstance(await direct.bind("frankfurt", 0), Bound)


async def test_a_peer_that_gave_up_meanwhile_leaves_no_binding(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.start()
    direct = await world.direct()
    bind, go = world.relay.bind, asyncio.Event()

    async def slow(*asked: Any) -> Any:
        await go.wait()
        return await bind(*asked)

    monkeypatch.setattr(world.relay, "bind", slow)
    asking = asyncio.create_task(direct.bind("frankfurt", 0))
    await until(lambda: bool(world.dubai._binding))
    asking.cancel()
    await until(lambda: world.dubai.counters.cancelled == 1)
    go.set()
    await until(lambda: not world.dubai._binding)
    assert world.relay.bindings == 0
    assert world.relay.counters.ended_unwanted == 1


async def test_a_mistake_in_the_route_is_told_and_leaves_nothing(world: World) -> None:
    await world.start()
    direct = await world.direct()

    def broken(region: str, turn: int) -> str:
        raise ZeroDivisionError("a mistake")

    world.relay._route = broken
    with pytest.raises(RegionFailure, match="internal"):
        await direct.bind("frankfurt", 0)
    assert world.dubai.counters.handler_errors == 1


async def test_a_relay_that_was_down_for_long_is_used_soon_after_it_is_back(world: World) -> None:
    await world.start()
    direct = world.tunnel("dubai", "127.0.0.1:1")
    patient = replace(FAST, backoff_min_ms=30_000, backoff_max_ms=60_000)
    relayed = world.tunnel("frankfurt", "via dubai", via=direct, settings=patient)
    await until(lambda: relayed.status.state == "waiting")
    direct.address = f"127.0.0.1:{world.dubai.port}"
    await until(lambda: relayed.connected)


async def test_a_relay_that_answers_itself_is_not_believed_to_be_near(world: World) -> None:
    """It cannot echo a probe: that is encrypted to the region's core."""
    await world.start()
    async with link(world.frankfurt.port, rtt_ms=60) as (_, port):
        world.map["frankfurt"] = f"127.0.0.1:{port}"
        _, relayed = await world.both()
        assert await read(relayed.open(request(), b"far")) == "far"
        relay, seen = world.relay, [b"\x40" * 30]

        def lie(batch: Batch, now: float) -> Batch:
            for data, address in batch:
                if data.startswith(HEAD):  # back at once: its own, an old one, and noise
                    seen.append(data[9:])
                    back = [data[9:], seen[-2], bytes([data[9]]) + os.urandom(40)]
                    world.dubai.udp.send([data[:9] + one for one in back], address)
            return [(data, address) for data, address in batch if not data.startswith(HEAD)]

        relay.pick = lie  # type: ignore[method-assign]
        await until(lambda: not relayed.connected, 8.0)
        assert relayed.rtt_ms is None or relayed.rtt_ms > 50
        del relay.pick  # type: ignore[method-assign]
        await until(lambda: relayed.connected, 10.0)
        assert await read(relayed.open(request(), b"true")) == "true"
        await world.close()


async def test_a_relay_that_damages_repeats_and_reorders_changes_no_answer(world: World) -> None:
    await world.start()
    _, relayed = await world.both()
    relay, rng = world.relay, Random(11)
    answered = relay._answered

    def mangle(binding: Binding, batch: Batch) -> None:
        copies = [pair for pair in batch for _ in range(rng.choice((0, 1, 1, 1, 1, 2)))]
        rng.shuffle(copies)
        for n, (data, address) in enumerate(copies):
            if rng.random() < 0.1:
                at = rng.randrange(len(data))
                damaged = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
                copies[n] = damaged, address
        answered(binding, copies)

    relay._answered = mangle  # type: ignore[method-assign]

    async def ask(body: bytes) -> str:
        while True:
            try:
                return await read(relayed.open(request(), body))
            except PathDown:  # so much is lost that it may seem cut
                await asyncio.sleep(0.05)

    bodies = [b"%d" % n * 600 for n in range(40)]
    async with asyncio.timeout(20):
        answers = await asyncio.gather(*[ask(body) for body in bodies])
    assert answers == [body.decode() for body in bodies]
