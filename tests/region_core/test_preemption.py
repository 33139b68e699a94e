"""A VIP takes a slot of one that runs: whose, and what becomes of that one's stream."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from random import Random

import pytest

from region_core.engine.base import Limits as EngineLimits
from region_core.engine.sim import SimEngine, SimSettings
from region_core.errors import EngineFault
from region_core.scheduling.batcher import Limits
from region_core.scheduling.plan import Step
from region_core.scheduling.preemption import BURST_S, PATIENCE_S, SHARE, Claim, Preemption, Victim
from tests.region_core.conftest import sim_engine
from tests.region_core.world import Recorder, World

LONG = Claim(0.0, 10.0)
SLOTS = Limits(slots=2, step_tokens=512, chunk_tokens=32, waiting=64, preemptions=2)


def chosen(*running: Victim, claim: Claim = LONG, token_s: float = 0.0) -> int | None:
    found = Preemption(2).choose(claim, running, token_s, 0.0)
    return found.id if found is not None else None


@pytest.mark.parametrize(
    ("running", "loser"),
    [
        ((Victim(1, 3, 0, 10), Victim(2, 6, 0, 500)), 2),  # batch before standard
        ((Victim(1, 3, 0, 10), Victim(2, 3, 0, 9)), 2),  # the least to take in again
        ((Victim(1, 3, 0, 9), Victim(2, 3, 0, 9)), 2),  # the last to have come
        ((Victim(1, 1, 0, 1), Victim(2, 0, 0, 1)), None),  # never a VIP
        ((Victim(1, 6, 2, 1), Victim(2, 3, 1, 90)), 2),  # no more than twice
        ((Victim(1, 6, 0, 1, spared=True),), None),
        ((), None),
    ],
)
def test_whose_slot(running: tuple[Victim, ...], loser: int | None) -> None:
    assert chosen(*running) == loser


def test_only_where_it_is_of_use() -> None:
    one = Victim(1, 6, 0, 1)
    assert chosen(one, claim=Claim(0.0, PATIENCE_S)) is None
    assert chosen(one, claim=Claim(PATIENCE_S, 0.01)) == 1


def test_it_costs_no_more_than_its_share() -> None:
    preemption, spent = Preemption(10**9), 0.0
    for n in range(10_000):
        now = n * 0.01
        found = preemption.choose(LONG, (Victim(1, 3, 0, 100),), 0.0001, now)
        spent += 0.01 if found else 0.0
    assert 0.9 * SHARE * 100.0 < spent <= SHARE * 100.0 + BURST_S
    before = preemption.count
    for now in (-1e9, 1e12):  # a clock that jumps
        for _ in range(100):
            preemption.choose(LONG, (Victim(1, 3, 0, 100),), 0.0001, now)
    assert preemption.count - before <= 2 * (BURST_S / 0.01 + 1)


STOPS = ((), (" and",), ("🌊", "turns s"), ("zzzz", " the a"))


@pytest.mark.parametrize("seed", range(4))
async def test_a_stream_that_gave_up_its_slot_is_as_if_it_never_had(seed: int) -> None:
    """Characters that span tokens, and stop strings in progress, included."""
    rng = Random(seed)
    sim = {"step_ms": 3.0, "prefill_tokens_per_s": 1e6, "answer_tokens_min": 40}
    asked = [(f"Question {n} of {seed}", rng.choice(STOPS), rng.choice((3, 6))) for n in range(8)]
    async with World(sim_engine(**sim), limits=SLOTS) as calm:
        alone = [await calm.answer(text, stop=stop) for text, stop, _ in asked]
        assert calm.service.preemptions == 0
    async with World(sim_engine(**sim), limits=SLOTS) as world:
        sinks = [world.ask(text, stop=stop, urgency=urgency)[0] for text, stop, urgency in asked]
        vips: list[Recorder] = []
        while world.service.preemptions < 4 and len(vips) < 30:
            await asyncio.sleep(rng.random() * 0.03)
            vips.append(world.ask(f"VIP {len(vips)}", urgency=1, max_tokens=5)[0])
        for sink, expected in zip(sinks, alone, strict=True):
            await sink.done()
            assert sink.failure is None
            assert (sink.ids, sink.text) == (expected.ids, expected.text)
            assert (sink.finish, sink.usage) == (expected.finish, expected.usage)
        for vip in vips:
            await vip.done()
            assert vip.failure is None
        assert world.service.preemptions > 0
        assert not world.service._runner._arrivals and not world.service._runner._batcher._paused


class _Breaks(SimEngine):
    """A step fails when it is told to."""

    breaks = False

    def step(self, step: Step) -> Mapping[int, int]:
        if self.breaks and step.decodes:
            self.breaks = False
            raise EngineFault("it broke")
        return super().step(step)


async def test_those_that_wait_for_a_second_slot_are_cancelled_and_survive_a_fault() -> None:
    settings = SimSettings(step_ms=5.0, prefill_tokens_per_s=1e6, answer_tokens_min=60)
    engine = _Breaks(settings, EngineLimits(2, 512), "m")
    async with World(engine, limits=SLOTS) as world:
        asked = [world.ask(f"Number {n}", urgency=6) for n in range(2)]
        for sink, _ in asked:
            await asyncio.wait_for(sink.began.wait(), 20)
        vip, _ = world.ask("VIP", urgency=0)
        await asyncio.wait_for(vip.began.wait(), 20)
        runner = world.service._runner
        paused = [sink for sink, ticket in asked if ticket.id in runner._arrivals]
        assert len(paused) == 1 and world.service.preemptions == 1
        engine.breaks = True
        await vip.done()
        assert vip.failure is not None and vip.failure.code == "engine"
        await paused[0].done()
        assert paused[0].failure is None  # it held no slot when the step failed
        alone = await world.answer(f"Number {[s for s, _ in asked].index(paused[0])}")
        assert (alone.ids, alone.text) == (paused[0].ids, paused[0].text)

        asked = [world.ask(f"Again {n}", urgency=6) for n in range(2)]
        for sink, _ in asked:
            await asyncio.wait_for(sink.began.wait(), 20)
        vip, _ = world.ask("VIP", urgency=0)
        await asyncio.wait_for(vip.began.wait(), 20)
        for sink, ticket in asked:
            told = len(sink.calls)
            ticket.cancel()
            assert len(sink.calls) == told
        assert (await vip.done()).failure is None
        assert not runner._arrivals and not runner._batcher._paused
