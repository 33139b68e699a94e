"""What a relay takes, drops and holds: real sockets, a clock by hand, peers of our making."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.clock import ManualClock
from runtime.identity import Principal
from tests.overlay.conftest import until
from topology.overlay import relay as relay_module
from topology.overlay.frames import Failure, Relay, Relayed
from topology.overlay.relay import HEAD, HEAD_BYTES, RelaySettings, UdpRelay
from topology.overlay.udp import Address, Batch, UdpPort

TOKYO, MUMBAI = Principal("edge", "tokyo"), Principal("edge", "mumbai")
HERE = ("127.0.0.1", 5000)
QUIC = b"\x40quic"


class Bench:
    """A relay, a core that it may reach, and what the relay sent to its peers."""

    def __init__(self, **settings: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.clock = ManualClock()
        self.got: list[tuple[bytes, Address]] = []  # by the core
        self.sent: list[tuple[list[bytes], Address]] = []  # to peers
        self.core = UdpPort.bind(self.loop, socket.AF_INET, ("127.0.0.1", 0), self._core)
        self.regions = {"frankfurt": f"127.0.0.1:{self.core.local_port}"}
        self.relay = UdpRelay(
            self.loop, self.clock, lambda region, turn: self.regions.get(region),
            RelaySettings(**settings), lambda run, address: self.sent.append((run, address)),
        )  # fmt: skip

    def _core(self, batch: Batch) -> None:
        self.got += batch

    async def bind(
        self, peer: Principal = TOKYO, region: str = "frankfurt", host: str = HERE[0]
    ) -> Relayed | Failure:
        return await self.relay.bind(peer, host, Relay(region, 0))

    async def head(self, peer: Principal = TOKYO) -> bytes:
        bound = await self.bind(peer)
        assert isinstance(bound, Relayed)
        return HEAD + bound.binding

    def pick(self, *datagrams: bytes, address: Address = HERE) -> Batch:
        return self.relay.pick([(data, address) for data in datagrams], self.clock.now())

    def close(self) -> None:
        self.relay.close()
        self.core.close()


@pytest.fixture
async def bench() -> AsyncIterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**settings: Any) -> Bench:
        made.append(Bench(**settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


Make = Callable[..., Bench]


def reason(frame: Relayed | Failure) -> str | None:
    assert isinstance(frame, Failure)
    return frame.reason


async def test_datagrams_pass_both_ways_in_order_and_the_rest_is_left(bench: Make) -> None:
    b = bench()
    head = await b.head()
    run = [b"\x40%04d" % n for n in range(200)]
    own = b"\xc0 a packet for the server itself"
    left = b.pick(*[head + data for data in run[:100]], own, *[head + d for d in run[100:]])
    assert left == [(own, HERE)]
    await until(lambda: len(b.got) == 200)
    assert [data for data, _ in b.got] == run
    core = b.got[0][1]
    b.core.send([b"\x41%03d" % n for n in range(50)], core)
    await until(lambda: sum(len(sent) for sent, _ in b.sent) == 50)
    assert [d for sent, _ in b.sent for d in sent] == [head + b"\x41%03d" % n for n in range(50)]
    assert {address for _, address in b.sent} == {HERE}
    counters = b.relay.counters
    assert (counters.forwarded, counters.forwarded_bytes) == (200, 1000)
    assert (counters.returned, counters.returned_bytes) == (50, 200)


async def test_answers_follow_the_peers_port_and_never_another_host(bench: Make) -> None:
    b = bench()
    head = await b.head()
    b.pick(head + QUIC)
    b.pick(head + QUIC, address=("127.0.0.2", 5000))  # forged
    await until(lambda: len(b.got) == 1)
    b.core.send([QUIC], b.got[0][1])
    await until(lambda: len(b.sent) == 1)
    assert b.sent[0][1] == HERE
    b.pick(head + QUIC, address=("127.0.0.1", 6000))  # a NAT gave it another port
    b.core.send([QUIC], b.got[0][1])
    await until(lambda: len(b.sent) == 2)
    assert b.sent[1][1] == ("127.0.0.1", 6000)
    assert b.relay.counters.dropped_address == 1
    assert b.relay.counters.forwarded == 2


async def test_nothing_comes_back_before_the_peer_has_sent(bench: Make) -> None:
    b = bench()
    await b.head()
    [binding] = b.relay._bindings.values()
    b.core.send([QUIC], ("127.0.0.1", binding.port.local_port))
    await asyncio.sleep(0.02)
    assert not b.sent


async def test_a_stranger_cannot_answer_for_the_core(bench: Make) -> None:
    b = bench()
    b.pick(await b.head() + QUIC)
    [binding] = b.relay._bindings.values()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(QUIC, ("127.0.0.1", binding.port.local_port))
    await asyncio.sleep(0.02)
    assert not b.sent


async def test_only_what_looks_like_quic_leaves_so_that_no_second_head_does(bench: Make) -> None:
    b = bench()
    head, second = await b.head(), await b.head()
    b.pick(head, head + b"\x00", head + second + QUIC, head + head + head + QUIC)
    assert b.relay.counters.dropped_not_quic == 4
    assert b.relay.counters.forwarded == 0


async def test_large_datagrams_are_dropped(bench: Make) -> None:
    b = bench(max_datagram_bytes=1200)
    head = await b.head()
    b.pick(head + b"\x40" * 1200, head + b"\x40" * 1201)
    assert (b.relay.counters.forwarded, b.relay.counters.dropped_size) == (1, 1)


async def test_unknown_regions_and_addresses_that_fail_are_refused(bench: Make) -> None:
    b = bench()
    assert reason(await b.bind(region="atlantis")) == "relay_unknown_region"
    b.regions["nowhere"] = "not an address"
    b.regions["nobody"] = "no-such-host.invalid:1"
    b.regions["nonsense"] = "no..name:1"
    assert reason(await b.bind(region="nonsense")) == "relay_unreachable"
    assert reason(await b.bind(region="nowhere")) == "relay_unreachable"
    assert reason(await b.bind(region="nobody")) == "relay_unreachable"
    assert b.relay.counters.refused_unknown == 1
    assert b.relay.counters.refused_unreachable == 3
    assert (b.relay.bindings, b.relay._peers, b.relay._making) == (0, {}, 0)


async def test_bindings_are_bounded_per_peer_and_in_all(bench: Make) -> None:
    b = bench(max_bindings=5, max_bindings_per_peer=3)
    for _ in range(3):
        await b.head(TOKYO)
    assert reason(await b.bind(TOKYO)) == "relay_full"
    await b.head(MUMBAI)
    await b.head(MUMBAI)
    assert reason(await b.bind(MUMBAI)) == "relay_full"
    assert b.relay.bindings == 5
    assert b.relay.counters.refused_full == 2


async def test_a_silent_binding_gives_way_where_there_is_no_room(bench: Make) -> None:
    b = bench(max_bindings_per_peer=3, gives_way_ms=5000)
    heads = [await b.head() for _ in range(3)]
    b.clock.advance(6)
    b.pick(heads[0] + QUIC, heads[2] + QUIC)
    new = await b.head()
    assert reason(await b.bind()) == "relay_full"  # the rest was heard of lately
    b.pick(heads[1] + QUIC)
    assert b.relay.counters.dropped_unbound == 1
    b.pick(heads[0] + QUIC, heads[2] + QUIC, new + QUIC)
    assert b.relay.counters.dropped_unbound == 1
    assert b.relay.counters.ended_for_others == 1


async def test_bindings_lapse_unless_the_peer_uses_them(bench: Make) -> None:
    b = bench(idle_ms=10_000)
    used, silent = await b.head(), await b.head()
    b.pick(silent + QUIC)
    await until(lambda: len(b.got) == 1)
    for _ in range(11):
        b.clock.advance(1)
        b.pick(used + QUIC)
        b.core.send([QUIC], b.got[0][1])  # the core alone does not keep it
        b.relay.expire(b.clock.now())
    assert list(b.relay._bindings) == [used]
    b.pick(silent + QUIC)
    assert b.relay.counters.dropped_unbound == 1
    assert b.relay.counters.ended_idle == 1


async def test_a_region_that_leaves_the_map_takes_its_bindings_along(bench: Make) -> None:
    b = bench()
    await b.head()
    b.relay.review()
    assert b.relay.bindings == 1
    b.regions.clear()
    b.relay.review()
    assert (b.relay.bindings, b.relay.counters.ended_unknown) == (0, 1)


async def test_a_region_that_leaves_the_map_while_a_binding_is_made_gets_none(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench()
    resolve = relay_module.resolve

    async def meanwhile(address: str) -> Any:
        found = await resolve(address)
        b.regions.clear()
        b.relay.review()
        return found

    monkeypatch.setattr(relay_module, "resolve", meanwhile)
    assert reason(await b.bind()) == "relay_unreachable"
    assert (b.relay.bindings, b.relay._peers, b.relay._making) == (0, {}, 0)


async def test_a_peer_may_send_so_many_datagrams_a_second_and_all_of_them_so_many(
    bench: Make,
) -> None:
    b = bench(datagrams_per_s=400, total_datagrams_per_s=600)
    tokyo, tokyo_too, mumbai = await b.head(TOKYO), await b.head(TOKYO), await b.head(MUMBAI)
    b.pick(*[tokyo + QUIC] * 80, *[tokyo_too + QUIC] * 80)
    assert b.relay.counters.forwarded == 100  # a quarter of a second's worth
    assert b.relay.counters.dropped_rate == 60
    b.pick(*[mumbai + QUIC] * 80)
    assert b.relay.counters.forwarded == 150
    b.clock.advance(0.1)
    b.pick(*[tokyo + QUIC] * 80)
    assert b.relay.counters.forwarded == 190
    b.pick(*[mumbai + QUIC] * 80)
    assert b.relay.counters.forwarded == 210


async def test_answers_are_bounded_too(bench: Make) -> None:
    b = bench(datagrams_per_s=400)
    b.pick(await b.head() + QUIC)
    await until(lambda: len(b.got) == 1)
    b.core.send([QUIC] * 150, b.got[0][1])
    await until(lambda: b.relay.counters.returned + b.relay.counters.dropped_rate == 150)
    assert b.relay.counters.returned == 100


async def test_bindings_that_are_being_made_are_bounded_and_leave_nothing_behind(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench(max_binding_now=3)
    asked: list[str] = []

    async def hang(address: str) -> Any:
        asked.append(address)
        await asyncio.sleep(60)

    monkeypatch.setattr(relay_module, "resolve", hang)
    slow = [asyncio.create_task(b.bind()) for _ in range(3)]
    await until(lambda: len(asked) == 3)
    assert b.relay.full
    assert reason(await b.bind()) == "relay_full"
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    assert (b.relay._peers, b.relay._making, b.relay.bindings) == ({}, 0, 0)
    monkeypatch.setattr(relay_module, "_RESOLVE_S", 0.01)
    assert reason(await b.bind()) == "relay_unreachable"


async def test_nobody_at_the_address_is_counted(bench: Make) -> None:
    b = bench()
    b.core.close()
    head = await b.head()
    for _ in range(3):
        b.pick(head + QUIC)
        await asyncio.sleep(0.005)
    assert b.relay.counters.unreachable > 0


@given(st.lists(st.tuples(st.binary(max_size=40), st.booleans(), st.booleans()), max_size=30))
def test_garbage_passes_nothing(datagrams: list[tuple[bytes, bool, bool]]) -> None:
    """Random bytes, with a good head before them or none, from the right host or another."""

    async def main() -> None:
        b = Bench()
        head = await b.head()
        batch = [
            (head + data if headed else data or b"\x00", HERE if ours else ("127.0.0.9", 1))
            for data, headed, ours in datagrams
        ]
        left = b.relay.pick(batch, b.clock.now())
        assert left == [pair for pair in batch if pair[0][0] & 0xC0]
        counters = b.relay.counters
        dropped = sum(count for _, count in counters.by_reason("dropped"))
        assert counters.forwarded + dropped + len(left) == len(batch)
        assert counters.forwarded == sum(
            headed and ours and bool(data) and bool(data[0] & 0x40)
            for data, headed, ours in datagrams
        )
        assert b.relay.bindings == 1
        b.close()

    asyncio.run(main())


async def test_heads_have_nine_bytes_and_are_drawn_anew(bench: Make) -> None:
    b = bench()
    heads = {await b.head() for _ in range(50)}
    assert len(heads) == 50
    assert {len(head) for head in heads} == {HEAD_BYTES}


@given(st.data())
def test_whatever_happens_what_is_held_is_counted_and_bounded(data: st.DataObject) -> None:
    """Peers bind, send, fall silent and give up in any order, against a naive count."""
    peers = (TOKYO, MUMBAI, Principal("core", "dubai"))

    async def main() -> None:
        b = Bench(max_bindings=6, max_bindings_per_peer=3, idle_ms=10_000, gives_way_ms=3000)
        with closing(b):
            await happen(b)

    async def happen(b: Bench) -> None:
        held: dict[bytes, tuple[Principal, float]] = {}  # when it was last used
        for _ in range(data.draw(st.integers(1, 40))):
            now = b.clock.now()
            kind = data.draw(st.sampled_from(["bind", "bind", "bind", "send", "wait", "unbind"]))
            chosen = data.draw(st.integers(0, 5))
            some = list(held)[chosen] if chosen < len(held) else HEAD + bytes(8)
            if kind == "bind":
                peer = data.draw(st.sampled_from(peers))
                own = [head for head, (whose, _) in held.items() if whose == peer]
                rivals = own if len(own) >= 3 else list(held) if len(held) >= 6 else []
                silent = [head for head in rivals if held[head][1] <= now - 3]
                bound = await b.bind(peer)
                assert isinstance(bound, Relayed) == (not rivals or bool(silent))
                if isinstance(bound, Relayed):
                    if rivals:
                        [gone] = held.keys() - b.relay._bindings.keys()
                        assert held[gone][1] == min(held[head][1] for head in silent)
                        del held[gone]
                    held[HEAD + bound.binding] = peer, now
            elif kind == "send":
                before = b.relay.counters.forwarded
                b.pick(some + QUIC)
                assert b.relay.counters.forwarded == before + (some in held)
                if some in held:
                    held[some] = held[some][0], now
            elif kind == "wait":
                b.clock.advance(data.draw(st.sampled_from([0.5, 2.0, 4.0, 11.0])))
                b.relay.expire(b.clock.now())
                held = {h: v for h, v in held.items() if v[1] >= b.clock.now() - 10}
            else:
                b.relay.unbind(Relayed(some[1:], 1))
                held.pop(some, None)
            assert b.relay._bindings.keys() == held.keys()
            counted = {peer: taken.bindings for peer, taken in b.relay._peers.items()}
            owners = [peer for peer, _ in held.values()]
            assert counted == {peer: owners.count(peer) for peer in owners}
            assert len(held) <= 6
            assert max(counted.values(), default=0) <= 3

    asyncio.run(main())
