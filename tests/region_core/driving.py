"""Drive an engine by hand, step by step."""

from __future__ import annotations

from collections.abc import Sequence

from region_core.engine.base import Begin, Engine, Sampling
from region_core.scheduling.plan import Chunk, Step

GREEDY = Sampling(temperature=0.0)


def take_in(
    engine: Engine,
    slot: int,
    prompt: Sequence[int],
    sampling: Sampling = GREEDY,
    answer: Sequence[int] = (),
    sizes: Sequence[int] = (),
) -> int:
    """Begin a sequence, take its input in (in chunks of `sizes`, then the rest), sample."""
    engine.begin(Begin(slot, tuple(prompt), tuple(answer), sampling))
    total, at = len(prompt) + len(answer), 0
    for size in sizes:
        if at + size < total:
            assert not engine.step(Step((Chunk(slot, at, size, False),)))
            at += size
    return engine.step(Step((Chunk(slot, at, total - at, True),)))[slot]


def alone(
    engine: Engine,
    prompt: Sequence[int],
    count: int,
    sampling: Sampling = GREEDY,
    answer: Sequence[int] = (),
    slot: int = 0,
    sizes: Sequence[int] = (),
) -> list[int]:
    """`count` tokens of one sequence, with nobody else in the batch; end tokens do not end it."""
    out = [take_in(engine, slot, prompt, sampling, answer, sizes)]
    while len(out) < count:
        out.append(engine.step(Step((), (slot,)))[slot])
    engine.release(slot)
    return out
