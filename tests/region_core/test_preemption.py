"""A VIP takes a slot of one that runs: whose, and what becomes of that one's stream."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from region_core.scheduling.batcher import Limits
from region_core.scheduling.preemption import PATIENCE_S, Claim, Preemption, Victim
from tests.region_core.conftest import sim_engine
from tests.region_core.world import Recorder, World

LONG = Claim(0.0, 10.0)
SLOTS = Limits(slots=4, step_tokens=512, chunk_tokens=32, waiting=64, preemptions=2)


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
    assert 0.9 * 0.02 * 100.0 < spent <= 0.02 * 100.0 + 0.25
    before = preemption.count
    for now in (-1e9, 1e12):  # a clock that jumps
        for _ in range(100):
            preemption.choose(LONG, (Victim(1, 3, 0, 100),), 0.0001, now)
    assert preemption.count - before <= 2 * 26


STOPS = ((), (" and",), ("🌊", "turns s"), ("zzzz", " the a"))


@pytest.mark.parametrize("seed", range(6))
async def test_a_stream_that_gave_up_its_slot_is_as_if_it_never_had(seed: int) -> None:
    """Characters that span tokens, and stop strings in progress, included."""
    rng = Random(seed)
    sim = {"step_ms": 1.0, "prefill_tokens_per_s": 1e6, "answer_tokens_min": 30}
    asked = [(f"Question {n} of {seed}", rng.choice(STOPS), rng.choice((3, 6))) for n in range(12)]
    async with World(sim_engine(**sim), limits=SLOTS) as calm:
        alone = [await calm.answer(text, stop=stop) for text, stop, _ in asked]
        assert calm.service.preemptions == 0
    async with World(sim_engine(**sim), limits=SLOTS) as world:
        sinks: list[Recorder] = []
        vips: list[Recorder] = []
        for text, stop, urgency in asked:
            sinks.append(world.ask(text, stop=stop, urgency=urgency)[0])
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(rng.random() * 0.008)
                vips.append(world.ask(f"VIP {len(vips)}", urgency=1)[0])
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
