"""What becomes of a request, over every engine where it matters."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from region_core.engine.base import Begin, Engine
from region_core.engine.sim import SimEngine
from region_core.errors import EngineFault
from region_core.scheduling.batcher import Limits
from region_core.scheduling.plan import Step
from runtime.clock import ManualClock
from tests.region_core.conftest import sim_engine
from tests.region_core.world import Recorder, World

SLOW = {"step_ms": 20.0}
ONE_SLOT = Limits(slots=1, step_tokens=512, chunk_tokens=128, waiting=2)


async def test_an_answer(engine: Engine) -> None:
    async with World(engine) as world:
        got = await world.answer(max_tokens=12)
        prompt = engine.tokenizer.encode_chat(world.job().request.messages)
        assert got.calls[0] == "accepted" and got.calls[-1] == "end"
        assert got.usage == (len(prompt), len(got.ids)) and got.queue_ms == 0.0
        assert 1 <= len(got.ids) <= 12
        assert got.finish == ("length" if len(got.ids) == 12 else "stop")
        assert not set(got.ids) & engine.tokenizer.end_ids
        data = b"".join(map(engine.tokenizer.token_bytes, got.ids))
        assert got.text == data.decode(errors="replace")


async def test_many_at_once_answer_as_if_alone(engine: Engine) -> None:
    async with World(engine) as world:
        texts = [f"Number {n}: " + "and so on " * n for n in range(7)]  # more than slots
        alone = [await world.answer(text, max_tokens=9 + n) for n, text in enumerate(texts)]
        sinks = [world.ask(text, max_tokens=9 + n)[0] for n, text in enumerate(texts)]
        together = [await sink.done() for sink in sinks]
        for one, other in zip(alone, together, strict=True):
            assert (one.ids, one.text, one.finish, one.usage) == (
                other.ids,
                other.text,
                other.finish,
                other.usage,
            )


@pytest.mark.parametrize(
    "changes", [{}, {"temperature": 0.9, "top_p": 0.8}], ids=["greedy", "warm"]
)
async def test_resuming_in_another_core(engine: Engine, changes: Mapping[str, float]) -> None:
    """Cut an answer anywhere: text, tokens and usage go on without a seam."""
    async with World(engine) as world:
        whole = await world.answer(max_tokens=14, request_id="same", **changes)
        for cut in {1, len(whole.ids) // 2, len(whole.ids) - 1, len(whole.ids)}:
            resume = tuple(whole.ids[:cut])
            rest = await world.answer(max_tokens=14, request_id="same", resume=resume, **changes)
            assert list(resume) + rest.ids == whole.ids
            assert "".join(whole.pieces[:cut]) + rest.text == whole.text
            assert (rest.finish, rest.usage) == (whole.finish, whole.usage)
            assert rest.base in (None, cut)


async def test_stop_strings(engine: Engine) -> None:
    async with World(engine) as world:
        whole = await world.answer(max_tokens=20)
        at = len(whole.text) // 2
        stop = whole.text[at : at + 3]
        got = await world.answer(max_tokens=20, stop=(stop, "never to be seen"))
        assert got.text == whole.text[: whole.text.index(stop)]
        assert got.finish == "stop" and got.usage[1] == len(got.ids) <= len(whole.ids)
        assert got.ids == whole.ids[: len(got.ids)]
        # and again, cut in the middle of a stop string
        cut = max(1, len(got.ids) - 1)
        rest = await world.answer(max_tokens=20, stop=(stop,), resume=tuple(got.ids[:cut]))
        assert "".join(got.pieces[:cut]) + rest.text == got.text and rest.finish == "stop"


@pytest.mark.parametrize("instant", [False, True])
async def test_refusals(instant: bool) -> None:
    async with World(sim_engine(instant=instant), max_output_tokens=50) as world:
        cases = [
            ({"model": "other"}, "unknown_model", 404, "model", "model_not_found"),
            ({"max_tokens": 51}, "invalid", 400, "max_tokens", "invalid_value"),
            ({"text": "x" * 3000}, "invalid", 400, "messages", "context_length_exceeded"),
            ({"text": "x" * 100_000}, "invalid", 400, "messages", "context_length_exceeded"),
            ({"text": "x" * 1450, "max_tokens": 50}, "invalid", 400, "messages",
             "context_length_exceeded"),
            ({"resume": (0,)}, "invalid", 400, "resume_tokens", None),
            ({"resume": (2**40,)}, "invalid", 400, "resume_tokens", None),
            ({"resume": (1 << 24,) * 9, "max_tokens": 8}, "invalid", 400, "resume_tokens", None),
        ]  # fmt: skip
        for changes, code, status, param, reason in cases:
            got = await world.answer(**changes)
            assert got.calls == ["failed"] and got.failure is not None, changes
            failure = got.failure
            assert (failure.code, failure.status, failure.param, failure.reason) == (
                code, status, param, reason,
            )  # fmt: skip
            assert not failure.retryable
        assert world.service.counters.failed == {"unknown_model": 1, "invalid": 7}


async def test_without_max_tokens_the_default_or_what_is_left() -> None:
    async with World(sim_engine(answer_tokens_min=90, answer_tokens_max=90)) as world:
        assert (await world.answer()).usage[1] == 64
        got = await world.answer("x" * (3 * 500 - 7))  # "user: " and a line break are added
        assert got.usage == (500, 12) and got.finish == "length"


async def test_instant_and_stepped_answer_alike() -> None:
    """The benchmark's short cut says what the real path says."""
    cases = [
        {},
        {"max_tokens": 5},
        {"max_tokens": 256},
        {"stop": (" ",)},
        {"temperature": 1.0, "seed": 5},
        {"max_tokens": 7, "resume": "head"},
        {"resume": "head", "stop": (" ",)},
        {"max_tokens": 4, "resume": "head"},
    ]
    async with World(sim_engine()) as stepped, World(sim_engine(instant=True)) as instant:
        head = tuple((await stepped.answer()).ids[:4])
        for case in cases:
            changes = case | ({"resume": head} if "resume" in case else {})
            one, other = await stepped.answer(**changes), await instant.answer(**changes)
            assert (one.ids, one.text, one.finish, one.usage) == (
                other.ids, other.text, other.finish, other.usage,
            ), case  # fmt: skip


async def test_long_prompts_are_prepared_aside(tiny_bundle: object) -> None:
    engine = SimEngine(sim_engine()._settings, sim_engine().limits, "x")
    async with World(engine, context_tokens=100_000) as world:
        sink, _ = world.ask("y" * 60_000, max_tokens=3)
        assert not sink.calls  # not yet: a thread is at it
        await sink.done()
        assert sink.usage[0] == -(-60_007 // 3)
        sink, ticket = world.ask("y" * 60_000)
        ticket.cancel()
        await asyncio.sleep(0.05)
        assert not sink.calls


async def test_cancelling_frees_the_slot() -> None:
    async with World(sim_engine(**SLOW), limits=ONE_SLOT) as world:
        first, ticket = world.ask()
        second, _ = world.ask(max_tokens=2)
        await first.began.wait()
        assert (world.service.report().running, world.service.report().waiting) == (1, 1)
        ticket.cancel()
        ticket.cancel()
        seen = list(first.calls)
        await second.done()
        assert second.finish == "length" and first.calls == seen
        assert world.service.counters.cancelled == 1


async def test_cancelling_one_that_waits() -> None:
    async with World(sim_engine(**SLOW), limits=ONE_SLOT) as world:
        world.ask()
        second, ticket = world.ask()
        ticket.cancel()
        assert second.calls == ["accepted"] and world.service.report().waiting <= 1


async def test_a_full_queue_refuses_and_the_urgent_displace() -> None:
    async with World(sim_engine(**SLOW), limits=ONE_SLOT) as world:
        running, _ = world.ask(urgency=3)
        await running.began.wait()
        waiting = [world.ask(urgency=5)[0] for _ in range(2)]
        refused, _ = world.ask(urgency=5)
        assert refused.failure is not None and refused.failure.code == "overloaded"
        assert refused.failure.retryable and refused.failure.status == 503
        urgent, _ = world.ask(urgency=0, max_tokens=1)
        assert urgent.calls == ["accepted"]
        assert waiting[1].failure is not None and waiting[1].failure.code == "overloaded"
        assert waiting[0].failure is None


async def test_urgent_ones_run_first() -> None:
    async with World(sim_engine(**SLOW), limits=ONE_SLOT) as world:
        running, ticket = world.ask()
        await running.began.wait()
        late, _ = world.ask(urgency=6, max_tokens=1)
        soon, _ = world.ask(urgency=1, max_tokens=50)
        ticket.cancel()
        await soon.began.wait()
        assert late.calls == ["accepted"]


async def test_deadlines_while_waiting_and_while_running() -> None:
    clock = ManualClock()
    async with World(sim_engine(step_ms=5.0), limits=ONE_SLOT, clock=clock) as world:
        running, _ = world.ask(deadline_s=clock.now() + 100)
        waiting, _ = world.ask(deadline_s=clock.now() + 10)
        await running.began.wait()
        clock.advance(11)
        await waiting.done()
        assert waiting.failure is not None and waiting.failure.code == "deadline"
        assert waiting.failure.status == 504 and not running.over.is_set()
        clock.advance(100)
        await running.done()
        assert running.failure is not None and running.failure.code == "deadline"


async def test_draining_finishes_what_is_under_way() -> None:
    world = World(sim_engine(step_ms=2.0))
    world.service.start()
    under_way, _ = world.ask(max_tokens=20)
    drain = asyncio.create_task(world.service.drain(10.0))
    await asyncio.sleep(0)
    refused, _ = world.ask()
    assert refused.failure is not None and refused.failure.code == "draining"
    assert refused.failure.retryable
    await drain
    assert under_way.finish == "length"
    assert not world.service.ready


async def test_draining_cuts_off_what_takes_too_long() -> None:
    world = World(sim_engine(step_ms=50.0))
    world.service.start()
    under_way, _ = world.ask()
    await under_way.began.wait()
    await world.service.drain(0.05)
    assert under_way.failure is not None and under_way.failure.code == "draining"
    assert under_way.failure.retryable


class Faulty(SimEngine):
    """Fails the steps that it is told to fail."""

    faults: list[Exception]

    def step(self, step: Step) -> Mapping[int, int]:
        if self.faults:
            raise self.faults.pop()
        return super().step(step)


def faulty(*faults: Exception) -> Faulty:
    sim = sim_engine()
    engine = Faulty(sim._settings, sim.limits, "faulty")
    engine.faults = list(faults)
    return engine


@pytest.mark.parametrize("fault", [EngineFault("out of memory"), ZeroDivisionError()])
async def test_a_fault_loses_the_step_and_no_more(fault: Exception) -> None:
    async with World(faulty(fault)) as world:
        lost = await world.answer()
        assert lost.failure is not None and lost.failure.code == "engine"
        assert lost.failure.retryable and "division" not in lost.failure.message
        assert (await world.answer(max_tokens=3)).finish == "length"
        assert world.service.healthy and world.service.steps.faults == 1


async def test_faults_in_a_row_make_it_unhealthy_until_a_step_works() -> None:
    async with World(faulty(*[EngineFault("no")] * 3)) as world:
        for _ in range(3):
            assert world.service.ready
            await world.answer()
        assert not world.service.ready
        await world.answer(max_tokens=1)
        assert world.service.ready


class Broken(Recorder):
    """A sink whose client's connection fails in our hands."""

    def tokens(self, position: int, ids: tuple[int, ...], text: str) -> None:
        raise RuntimeError("the connection is in a bad state")


async def test_a_broken_sink_harms_nobody_else() -> None:
    async with World(sim_engine()) as world:
        sink = Broken()
        world.service.submit(world.job(), sink)
        assert (await world.answer(max_tokens=5)).finish == "length"
        assert world.service.counters.sink_errors == 1
        assert world.service.report().running == 0


async def test_the_report_counts(engine: Engine) -> None:
    async with World(engine) as world:
        got = await world.answer(max_tokens=5)
        report = world.service.report()
        counters = world.service.counters
        assert (report.running, report.waiting, report.load) == (0, 0, 0.0)
        assert report.tokens_per_s > 0 and report.requests_per_s > 0
        assert counters.completion_tokens == len(got.ids)
        assert counters.prompt_tokens == got.usage[0]
        assert "application_utilization=0" in report.orca_header()


async def test_the_loop_stays_free_while_the_engine_works(engine: Engine) -> None:
    async with World(engine) as world:
        sinks = [world.ask(f"{n}", max_tokens=20)[0] for n in range(4)]
        loop = asyncio.get_running_loop()
        worst = 0.0
        while not all(sink.over.is_set() for sink in sinks):
            started = loop.time()
            await asyncio.sleep(0.001)
            worst = max(worst, loop.time() - started)
        assert worst < 0.5  # a step blocks it not at all; the bound allows for a busy machine


def test_begin_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Begin(0, (), (), None).slot = 1  # type: ignore[misc, arg-type]
