"""Arrivals, clients that leave, deadlines and preemptions, all in the same steps: each request ends
once, and nothing of it is left."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from region_core.engine.base import Limits as EngineLimits
from region_core.engine.sim import SimEngine, SimSettings
from region_core.job import Ticket
from region_core.scheduling import preemption
from region_core.scheduling.batcher import Limits
from tests.region_core.world import MODEL, Recorder, World

QUICK = SimSettings(step_ms=0.3, step_ms_per_sequence=0.0, prefill_tokens_per_s=1e6)
FIRST_CURSOR = {1: 0, 3: 128, 6: 256}
LASTS_S = 2.0


async def test_each_request_ends_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SHARE", 50.0), ("BURST_S", 10.0), ("PATIENCE_S", -1.0)):
        monkeypatch.setattr(preemption, name, value)  # whoever may take a slot does
    limits = Limits(slots=6, step_tokens=512, chunk_tokens=64, waiting=40)
    async with World(SimEngine(QUICK, EngineLimits(6, 2048), MODEL), limits=limits) as world:
        asked = await _storm(world, Random(9))
        for sink, left in asked:
            if not left:
                await asyncio.wait_for(sink.over.wait(), 20)
                assert sink.calls.count("end") + sink.calls.count("failed") == 1, sink.calls
            else:
                assert sink.calls.count("end") + sink.calls.count("failed") <= 1, sink.calls
        runner = world.service._runner
        while not runner._batcher.idle:
            await asyncio.sleep(0.01)
        assert runner.preemptions > 0
        assert (runner.running, runner.waiting, runner.unused) == (0, 0, 6)
        assert not (runner._arrivals or runner._batcher._paused or world.service._tickets)


async def _storm(world: World, rng: Random) -> list[tuple[Recorder, bool]]:
    """Those who asked, and whether they left."""
    asked: list[tuple[Recorder, Ticket]] = []
    gone: set[int] = set()

    def leave(index: int) -> None:
        sink, ticket = asked[index]
        if not sink.over.is_set():
            gone.add(index)
            ticket.cancel()

    end_s = world.clock.now() + LASTS_S
    while world.clock.now() < end_s:
        for _ in range(rng.randrange(4)):
            urgency = rng.choice((1, 3, 3, 6, 6, 6, 6))
            asked.append(
                world.ask(
                    "hello " * rng.randrange(1, 60),
                    urgency=urgency,
                    cursor=FIRST_CURSOR[urgency] + rng.randrange(128),
                    deadline_s=world.clock.now() + rng.choice((0.003, 0.01, 0.05, 0.3, 5, 5, 5)),
                    max_tokens=rng.choice((1, 4, 40, 120)),
                )
            )
            if rng.random() < 0.2:
                leave(len(asked) - 1)
        if asked and rng.random() < 0.2:
            leave(rng.randrange(max(0, len(asked) - 50), len(asked)))
        await asyncio.sleep(rng.choice((0.0, 0.0005, 0.002)))
    return [(sink, index in gone) for index, (sink, _) in enumerate(asked)]
