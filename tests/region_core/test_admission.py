"""A whole core with more to do than it can: who is refused, how, and what that costs."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import msgspec
import pytest

from region_core.engine.sim import SimTokenizer
from region_core.scheduling.batcher import Limits
from tests.region_core.conftest import sim_engine
from tests.region_core.cores import MODEL, RunningCore, frame
from tests.region_core.world import Recorder, World
from topology.cursor import ALL_ADMITTED
from topology.overlay.errors import RegionFailure
from topology.overlay.frames import Accept

SLOW = {"step_ms": 20.0, "answer_tokens_min": 100, "answer_tokens_max": 100}
TWO_SLOTS = Limits(slots=2, step_tokens=512, chunk_tokens=128, waiting=64)


async def full(world: World, waiting: int) -> list[Recorder]:
    """Both slots in use, steps known, and so many that wait."""
    sinks = [world.ask(f"Number {n}")[0] for n in range(2 + waiting)]
    async with asyncio.timeout(20):
        while not world.service.forecast.steps.known:
            await asyncio.sleep(0.01)
    return sinks


async def test_what_cannot_be_in_time_is_refused_before_it_costs_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with World(sim_engine(**SLOW), limits=TWO_SLOTS) as world:
        await full(world, waiting=10)
        monkeypatch.setattr(SimTokenizer, "encode_chat", _never)
        late, _ = world.ask(deadline_s=world.clock.now() + 1.0)
        assert late.calls == ["failed"] and late.failure is not None
        failure = late.failure
        assert (failure.code, failure.status, failure.cause) == ("overloaded", 503, "forecast")
        assert failure.retryable and "s left" in failure.message
        assert failure.retry_after_ms is not None and failure.retry_after_ms > 500
        assert world.service.counters.accepted == 12
        assert world.service.counters.overloads == {"forecast": 1}
        past, _ = world.ask(deadline_s=world.clock.now() - 1.0)
        assert past.failure is not None and past.failure.code == "deadline"
        assert world.service.counters.overloads["late"] == 1  # it reached the core, and was refused


def _never(*_: object) -> tuple[int, ...]:
    raise AssertionError("a request that is refused is not tokenised")


async def test_the_wait_that_is_told_is_the_forecasts() -> None:
    async with World(sim_engine(**SLOW), limits=TWO_SLOTS) as world:
        await full(world, waiting=6)
        last, _ = world.ask("the last")
        assert last.queue_ms > 500
        urgent, _ = world.ask("urgent", urgency=0)
        assert urgent.queue_ms < last.queue_ms


async def test_one_that_waits_and_can_no_longer_be_in_time_is_let_go_at_once() -> None:
    """More urgent ones came than had come until then: it hears of it before its deadline."""
    async with World(sim_engine(**SLOW), limits=TWO_SLOTS) as world:
        await full(world, waiting=2)
        for patience_s in (5.5, 8.0, 12.0, 20.0):  # the last on a very busy machine
            promised, _ = world.ask("patient", deadline_s=world.clock.now() + patience_s)
            if promised.calls == ["accepted"]:
                break
        for n in range(55):  # all of them more urgent
            world.ask(f"urgent {n}", urgency=0)
        await promised.done()
        assert promised.failure is not None and promised.failure.code == "overloaded"
        assert promised.failure.cause == "given_up" and promised.failure.retryable
        assert promised.calls == ["accepted", "failed"]


async def test_a_refusal_is_cheap() -> None:
    """Measured: 6 microseconds. The bound allows for a busy machine."""
    async with World(sim_engine(**SLOW), limits=TWO_SLOTS) as world:
        await full(world, waiting=30)
        jobs = [world.job("hello " * 50, deadline_s=world.clock.now() + 1.0) for _ in range(1000)]
        sink = Recorder()
        started = time.thread_time()
        for job in jobs:
            sink.over.clear()
            world.service.submit(job, sink)
        assert (time.thread_time() - started) / len(jobs) < 200e-6
        assert sink.calls.count("failed") == len(jobs)


async def test_over_the_wire(tmp_path: Path) -> None:
    """The time to come back is in the ERROR frame, and in the headers of HTTP."""
    scheduling = {"slots": 2, "waiting": 64, "queue_target_ms": 1e6}
    async with (
        RunningCore(tmp_path / "pki", sim=SLOW, scheduling=scheduling) as running,
        httpx.AsyncClient(base_url=running.url, timeout=20) as http,
    ):
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "Tell me."}]}
        body = msgspec.json.encode(asked)
        service = running.core.service
        held = [running.tunnel.open(frame(f"h{n}"), body) for n in range(12)]
        async with asyncio.timeout(20):
            while not (service.forecast.steps.known and service.report().waiting >= 8):
                await asyncio.sleep(0.01)
        with pytest.raises(RegionFailure) as caught:
            await running.tunnel.open(frame("late", deadline_ms=1000), body).next()
        failure = caught.value.failure
        assert failure.code == "overloaded" and failure.retryable
        assert failure.retry_after_ms is not None and failure.retry_after_ms > 500
        headers = {"x-request-timeout-ms": "1000"}
        reply = await http.post("/v1/chat/completions", json=asked, headers=headers)
        assert reply.status_code == 503 and reply.json()["error"]["code"] == "overloaded"
        told_ms = int(reply.headers["retry-after-ms"])
        assert told_ms > 500
        assert 0 <= 1000 * int(reply.headers["retry-after"]) - told_ms < 1000
        metrics = (await http.get("/metrics")).text
        assert 'tradewind_core_refused_total{cause="forecast"} 2.0' in metrics
        assert 'tradewind_core_queue{urgency="3"}' in metrics
        assert "tradewind_core_forecast_margin" in metrics
        for exchange in held:
            exchange.cancel()


async def test_above_the_level_it_is_refused_at_once_and_told_so() -> None:
    limits = Limits(slots=2, step_tokens=512, chunk_tokens=128, waiting=64)
    async with World(sim_engine(**SLOW), limits=limits, queue_target_s=0.25) as world:
        await full(world, waiting=30)
        async with asyncio.timeout(20):
            while world.service.level > 128:
                await asyncio.sleep(0.02)
                world.ask("more", cursor=300, urgency=6)
        refused, _ = world.ask("one more", cursor=200)
        failure = refused.failure
        assert failure is not None and failure.cause == "level" and failure.retryable
        assert failure.code == "overloaded" and failure.status == 503
        assert failure.queue_ms is not None and failure.queue_ms > 1000
        assert failure.retry_after_ms is not None and failure.retry_after_ms >= 750
        assert world.service.counters.shed["standard"] >= 1
        vip, ticket = world.ask("VIP", cursor=127, urgency=1)
        assert vip.calls == ["accepted"]
        ticket.cancel()
        resumed, ticket = world.ask("go on", cursor=200, resume=tuple(await some(world)))
        assert resumed.failure is None
        ticket.cancel()
        late, _ = world.ask("late", cursor=300, deadline_s=world.clock.now() - 1)
        assert late.failure is not None and late.failure.code == "deadline"


async def some(world: World) -> list[int]:
    """The beginning of an answer."""
    vip, ticket = world.ask("go on", cursor=1, urgency=0)
    await asyncio.wait_for(vip.began.wait(), 20)
    ticket.cancel()
    return vip.ids[:2]


async def test_level_and_wait_travel_in_the_frames(tmp_path: Path) -> None:
    scheduling = {"slots": 1, "waiting": 64, "queue_target_ms": 10.0}
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "Tell me."}]}
    body = msgspec.json.encode(asked)
    async with RunningCore(tmp_path / "pki", sim=SLOW, scheduling=scheduling) as running:
        tunnel, held, levels = running.tunnel, [], set[int]()
        failures = []
        async with asyncio.timeout(30):
            while not failures or failures[-1].level == ALL_ADMITTED:
                exchange = tunnel.open(frame(f"r{len(levels)}{len(held)}", cursor=300), body)
                try:
                    accept = await exchange.next()
                    assert isinstance(accept, Accept)
                    levels.add(accept.level)
                    held.append(exchange)
                except RegionFailure as error:
                    failures.append(error.failure)
                await asyncio.sleep(0.01)
        assert ALL_ADMITTED in levels
        told = failures[-1]
        assert told.level is not None and told.level <= 300 and told.queue_ms is not None
        for exchange in held:
            exchange.cancel()
