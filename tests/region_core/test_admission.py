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
from topology.overlay.errors import RegionFailure

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
