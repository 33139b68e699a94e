"""`scheduling.protect: false`: the naive service that everything else is compared with."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from region_core.scheduling.batcher import Limits
from tests.region_core.conftest import sim_engine
from tests.region_core.world import World

LIMITS = Limits(slots=1, step_tokens=512, chunk_tokens=128, waiting=6)
SIM = {"step_ms": 2.0, "answer_tokens_min": 20, "answer_tokens_max": 20}


def naive() -> World:
    return World(sim_engine(**SIM), limits=LIMITS, queue_target_s=0.001, protect=False)


async def test_one_queue_in_the_order_of_arrival_whoever_asks() -> None:
    with capture_logs() as logged:
        world = naive()
    assert [e["log_level"] for e in logged if "protect" in e["event"]] == ["warning"]
    async with world:
        order: list[int] = []
        sinks = []
        for number, (urgency, tenant) in enumerate(
            [(6, "a"), (6, "a"), (3, "a"), (1, "b"), (0, "c"), (6, "d")]
        ):
            changes = {"urgency": urgency, "tenant": tenant, "cursor": 380}
            sinks.append(world.ask(f"Number {number}", **changes)[0])
        for number, sink in enumerate(sinks):
            await sink.done()
            order.append(number)
            later = [s for s in sinks[number + 2 :] if s.began.is_set()]
            assert not later and sink.failure is None
        assert world.service.preemptions == 0 and world.service.counters.shed == {}
        assert world.service.forecast.steps.known


async def test_what_is_late_is_answered_all_the_same() -> None:
    async with naive() as world:
        late, _ = world.ask("late", deadline_s=world.clock.now() - 5.0)
        soon, _ = world.ask("soon", deadline_s=world.clock.now() + 0.001)
        for sink in (late, soon):
            await sink.done()
            assert sink.failure is None and len(sink.ids) >= 20


async def test_work_for_clients_that_left_is_done_to_its_end() -> None:
    async with naive() as world:
        gone, ticket = world.ask("gone")
        await asyncio.wait_for(gone.began.wait(), 20)
        ticket.cancel()
        ticket.cancel()
        told = list(gone.calls)
        other, _ = world.ask("other")
        await other.done()
        counters = world.service.counters
        assert gone.calls == told and counters.cancelled == 1
        assert sum(counters.finished.values()) == 2 and counters.completion_tokens >= 40


async def test_only_the_room_to_wait_is_bounded() -> None:
    async with naive() as world:
        sinks = [world.ask(f"Number {n}", urgency=6)[0] for n in range(7)]
        refused, _ = world.ask("no room", urgency=0)
        assert refused.failure is not None and refused.failure.cause == "full"
        assert refused.failure.status == 503 and world.service.level == 384
        for sink in sinks:
            assert (await sink.done()).failure is None


@pytest.mark.parametrize("protect", [True, False])
async def test_a_prompt_that_is_tokenised_aside(protect: bool) -> None:
    """When its turn comes it may be late, or its client gone."""
    engine = sim_engine(**SIM)
    engine.limits = type(engine.limits)(1, 40_000)
    async with World(engine, limits=LIMITS, protect=protect) as world:
        long = "long " * 4_000
        late, _ = world.ask(long, deadline_s=world.clock.now() - 1.0)
        gone, ticket = world.ask(long)
        ticket.cancel()
        if protect:
            assert late.failure is not None and late.failure.code == "deadline"
        else:
            assert (await late.done()).failure is None
        assert gone.calls == [] or not protect
        last, _ = world.ask("last")
        assert (await last.done()).failure is None
