"""The regional tier over a real Redis: shared by cores, believed with care, and left alone when it
is slow, dead or lies. Skipped, with the reason, where no Redis can be had."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from region_core.answers_redis import PREFIX, RedisAnswers, RedisSettings
from region_core.circuit import FAILURES, HOLD_MAX_S, Circuit
from region_core.errors import NoRedis
from region_core.whole import FORMAT, Recording, Whole
from runtime.clock import SystemClock
from tests.redis_server import NoRedisServer, RedisServer, find_redis
from tests.region_core.test_answers import Region

PATIENT_MS = 500.0  # this machine may be loaded


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    try:
        server = RedisServer(find_redis(), tmp_path)
        await server.start()
    except NoRedisServer as reason:
        pytest.skip(f"no Redis is tested: {reason}")
    yield server
    server.kill()


def client(server: RedisServer, timeout_ms: float = PATIENT_MS) -> RedisAnswers:
    return RedisAnswers(RedisSettings(server.url, timeout_ms), SystemClock())


async def settled(redis: RedisAnswers) -> None:
    async with asyncio.timeout(10):
        while redis._waiting or redis._writer is not None:
            await asyncio.sleep(0.005)


async def test_what_one_core_has_made_another_gives(server: RedisServer) -> None:
    async with Region(client(server)) as one, Region(client(server)) as other:
        first = await one.answer()
        assert one.answers._redis is not None and other.answers._redis is not None
        await settled(one.answers._redis)
        again = await other.answer()
        assert (again.text, again.ids, again.usage) == (first.text, first.ids, first.usage)
        assert again.age_s is not None
        assert (other.answers.redis_hits, other.answers.hits) == (1, 1)
        here, _ = other.ask()
        assert here.over.is_set(), "now it has it itself"
        rest = await one.answer(resume=tuple(first.ids[:2]))
        assert first.text.endswith(rest.text)


@pytest.mark.parametrize("ttl_s", [1e18, 1e306])
async def test_an_answer_that_is_good_for_ever_is_kept(server: RedisServer, ttl_s: float) -> None:
    """Redis takes no end that 64 bits of milliseconds do not hold."""
    redis = client(server)
    now_s = SystemClock().wall()
    redis.put(b"name", Whole(FORMAT, now_s, now_s + ttl_s, b"", b"", "yes", "stop", 1, 0))
    await settled(redis)
    assert (redis.written, redis.failures) == (1, 0)
    kept = await redis.get(b"name")
    assert kept is not None and kept.text == "yes"
    await redis.close()


async def test_another_tenant_or_other_weights_find_nothing(server: RedisServer) -> None:
    async with Region(client(server)) as one, Region(client(server), identity="int8") as other:
        await one.answer()
        assert one.answers._redis is not None
        await settled(one.answers._redis)
        assert (await other.answer()).age_s is None
        assert (await one.answer(tenant="eurobank")).age_s is None


async def test_what_somebody_put_there_is_not_believed(server: RedisServer) -> None:
    async with Region(client(server)) as one, Region(client(server)) as other:
        await one.answer("mine")
        await one.answer("yours")
        redis = one.answers._redis
        assert redis is not None
        await settled(redis)
        raw = redis._redis
        names = [name async for name in raw.scan_iter(PREFIX + b"*")]
        assert len(names) == 2
        values = [await raw.get(name) for name in names]
        assert await raw.pttl(names[0]) <= 60_000
        await raw.set(names[0], values[1])
        await raw.set(names[1], b"\x00" * 40)
        mine, yours = await other.answer("mine"), await other.answer("yours")
        assert (mine.age_s, yours.age_s) == (None, None)
        assert other.answers._redis is not None
        assert other.answers._redis.disbelieved == 2


async def test_a_hung_redis_costs_a_moment_and_then_nothing(server: RedisServer) -> None:
    async with Region(client(server, 20.0)) as region:
        redis, loop = region.answers._redis, asyncio.get_running_loop()
        assert redis is not None
        await region.answer("warm")
        await settled(redis)
        server.signal(signal.SIGSTOP)
        for number in range(FAILURES):
            await region.answer(f"slow {number}")
        assert redis.failures >= FAILURES
        assert not redis.may()
        started = loop.time()
        await region.answer("without")
        assert loop.time() - started < 5
        assert redis.failures <= FAILURES + 3
        server.signal(signal.SIGCONT)
        async with asyncio.timeout(20):
            while not redis.hits:
                region.answers._cache.resize(0)
                region.answers._cache.resize(2**20)
                await region.answer("warm")
                await asyncio.sleep(0.1)


async def test_a_dead_redis_is_left_alone_and_told_once(server: RedisServer) -> None:
    server.kill()
    async with Region(client(server)) as region:
        for number in range(3 * FAILURES):
            assert (await region.answer(f"question {number}")).finish is not None
        redis = region.answers._redis
        assert redis is not None
        assert redis.failures <= FAILURES + 1
        assert redis.dropped > 0


async def test_a_request_that_waits_for_redis_can_be_cancelled(server: RedisServer) -> None:
    async with Region(client(server, 1000.0)) as region:
        server.signal(signal.SIGSTOP)
        sink, ticket = region.ask()
        await asyncio.sleep(0)
        ticket.cancel()
        server.signal(signal.SIGCONT)
        await asyncio.sleep(0.2)
        assert sink.calls == []
        assert region.service.report().running == 0


async def test_what_is_too_much_to_write_is_dropped(server: RedisServer) -> None:
    redis = client(server)
    recording = Recording()
    recording.add(0, (1,), "x" * 2**21)
    whole = recording.whole(SystemClock().wall(), 60.0, "stop", 1, 1)
    assert isinstance(whole, Whole)
    redis.put(b"n" * 32, whole)
    assert (redis.dropped, redis._writer) == (1, None)
    await redis.close()


def test_a_circuit_opens_tries_once_and_doubles() -> None:
    circuit, now = Circuit(), 100.0
    for _ in range(FAILURES - 1):
        circuit.failed(now)
        assert circuit.may(now)
    circuit.failed(now)
    held_s = 1.0
    for _ in range(10):
        assert not circuit.may(now + held_s * 0.99) and circuit.open(now + held_s * 0.99)
        now += held_s
        assert circuit.may(now), "one is let through"
        assert not circuit.may(now), "and no other meanwhile"
        circuit.failed(now)
        held_s = min(HOLD_MAX_S, 2 * held_s)
    assert circuit.may(now + held_s)
    circuit.went_well()
    assert circuit.may(now) and circuit.may(now)
    assert not circuit.open(now)


def test_without_the_package_the_error_says_what_to_install() -> None:
    assert "tradewind[redis]" in str(NoRedis().hint)
