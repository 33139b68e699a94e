"""The regional tier in front of a service: who is given what is there, and what is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from region_core import whole as wholes
from region_core.answers import Answers, Terms
from region_core.engine.base import Limits as EngineLimits
from region_core.engine.sim import SimEngine, SimSettings
from region_core.job import Job, Sink, Ticket
from region_core.prepare import Offer
from region_core.scheduling.batcher import Limits
from region_core.whole import Recording
from runtime.clock import ManualClock
from tests.region_core.world import MODEL, World
from topology.policy import CachePolicy, OverloadPolicy, PolicySpec
from topology.resources import ModelSpec
from topology.wire.chat import ChatRequest, Message

TERMS = Terms(ttl_s=60.0, max_bytes=2**20, share=0.5, epoch=b"one")
QUICK = SimSettings(step_ms=0.5, step_ms_per_sequence=0.0, prefill_tokens_per_s=1e6)


class Region(World):
    """A service with answers kept in front of it."""

    def __init__(self, redis: Any = None, identity: str = "sim", **more: Any) -> None:
        super().__init__(SimEngine(QUICK, EngineLimits(4, 2048), MODEL), **more)
        self.answers = Answers(
            identity, lambda: self.service.offer, lambda: (7.0, 0.5), self.clock, redis
        )
        self.answers.use(TERMS)
        self.service.answers = self.answers

    def job(self, text: str = "Tell me of the sea.", **changes: Any) -> Job:
        tenant, reuse = changes.pop("tenant", "acme"), changes.pop("reuse", True)
        job = super().job(text, **changes)
        return msgspec.structs.replace(job, tenant=tenant, reuse=reuse)

    async def __aexit__(self, *_: object) -> None:
        await self.answers.close()
        await super().__aexit__()


async def test_an_answer_that_is_there_is_given_as_it_was() -> None:
    async with Region() as region:
        first = await region.answer()
        again, _ = region.ask()
        assert again.over.is_set(), "at once"
        assert (again.text, again.ids) == (first.text, first.ids)
        assert (again.finish, again.usage) == (first.finish, first.usage)
        assert first.age_s is None
        assert again.age_s is not None and 0 <= again.age_s < 60
        assert region.service.report().running == 0
        assert again.queue_ms == 7.0, "as long as others wait"
        assert (region.answers.hits, region.answers.misses) == (1, 1)


async def test_it_is_given_where_nothing_is_admitted() -> None:
    limits = Limits(slots=1, step_tokens=512, chunk_tokens=128, waiting=0)
    async with Region(limits=limits) as region:
        first = await region.answer()
        region.engine._settings = SimSettings(step_ms=500.0)  # type: ignore[attr-defined]
        _, busy = region.ask("Something long.")
        await asyncio.sleep(0.05)
        refused, _ = region.ask("Another.")
        assert refused.failure is not None and refused.failure.code == "overloaded"
        again, _ = region.ask()
        assert again.text == first.text
        busy.cancel()


async def test_an_answer_is_continued_from_wherever_it_was_cut() -> None:
    async with Region() as region:
        whole = await region.answer()
        ids = tuple(whole.ids)
        for cut in range(len(ids) + 1):
            text = "".join(whole.pieces[:cut])
            rest, _ = region.ask(resume=ids[:cut])
            assert rest.over.is_set(), cut
            assert text + rest.text == whole.text
            assert list(ids[:cut]) + rest.ids == whole.ids
            assert rest.usage == whole.usage
        assert region.answers.resumed_hits == len(ids)


async def test_another_beginning_is_not_continued_from_what_is_there() -> None:
    async with Region() as region:
        whole = await region.answer()
        other = tuple(whole.ids[:3])[::-1]
        rest = await region.answer(resume=other)
        assert region.answers.hits == 0
        assert rest.finish is not None
        assert (await region.answer()).text == whole.text, "and what was made of it is not kept"


class Broken:
    """A client library with a mistake in it."""

    def may(self) -> bool:
        return True

    async def get(self, name: bytes) -> None:
        raise ValueError("not what was foreseen")

    def put(self, name: bytes, whole: object) -> None: ...

    async def close(self) -> None: ...


async def test_whatever_redis_comes_to_the_request_goes_on() -> None:
    async with Region(redis=Broken()) as region:
        assert (await region.answer()).finish is not None


async def test_what_is_not_to_be_reused_is_neither_looked_for_nor_kept() -> None:
    async with Region() as region:
        await region.answer(reuse=False)
        await region.answer(temperature=0.7)
        await region.answer(tenant="")
        assert (region.answers.kept, region.answers.misses) == (0, 0)
        await region.answer()
        assert (await region.answer(reuse=False)).age_s is None


async def test_requests_that_fail_or_are_given_up_leave_nothing() -> None:
    async with Region() as region:
        sink, ticket = region.ask("a long tale", max_tokens=200)
        await asyncio.wait_for(sink.began.wait(), 10)
        ticket.cancel()
        await region.answer(max_tokens=10_000)
        assert region.answers.kept == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda region: region.answers.use(Terms(60.0, 2**20, 0.5, b"two")),
        lambda region: region.answers.use(Terms()),
        lambda region: setattr(region.answers, "_identity", "other weights"),
        lambda region: setattr(
            region.service, "offer", type(region.service.offer)(MODEL, 2048, 256, 32)
        ),
    ],
)
async def test_what_changes_answers_makes_them_anew(change: Callable[[Region], None]) -> None:
    async with Region() as region:
        await region.answer()
        change(region)
        assert (await region.answer()).age_s is None


async def test_answers_end() -> None:
    clock = ManualClock()
    async with Region() as region:
        region.answers._clock = clock
        await region.answer()
        clock.advance(59.0)
        assert (await region.answer()).age_s == pytest.approx(59.0)
        clock.advance(2.0)
        assert (await region.answer()).age_s is None


def test_terms_follow_the_configuration() -> None:
    spec = ModelSpec(regions=("a",), context_tokens=100, cache_ttl_s=7.0)
    policy = PolicySpec(cache=CachePolicy(regional_max_bytes=5, tenant_share=0.25))
    terms = Terms.of(spec, policy)
    assert (terms.ttl_s, terms.max_bytes, terms.share) == (7.0, 5, 0.25)
    flushed = PolicySpec(cache=CachePolicy(regional_max_bytes=5, tenant_share=0.25, epoch=1))
    assert Terms.of(spec, flushed).epoch != terms.epoch
    assert Terms.of(None, policy) == Terms()
    assert Terms.of(spec, PolicySpec(overload=OverloadPolicy(protect=False))) == Terms()


ASKED = st.tuples(
    st.sampled_from(["acme", "euro", "a", "ac"]),
    st.sampled_from(["x", "y", "me", "mex"]),
    st.integers(0, 2),
)


class _Told:
    """An engine that answers with whom it was asked by."""

    def __init__(self) -> None:
        self.asked = 0

    def submit(self, job: Job, sink: Sink) -> Ticket:
        self.asked += 1
        text = f"{job.tenant}|{job.request.messages[0].content}|{job.request.seed}"
        sink.accepted(0.0, 0.0)
        sink.tokens(0, (1,), text)
        sink.end("stop", 1, 1)
        return sink  # type: ignore[return-value]


@given(st.lists(ASKED, max_size=40))
@settings(max_examples=50, deadline=None)
def test_nobody_is_given_what_another_tenant_asked_for(asked: list[tuple[str, str, int]]) -> None:
    offer = Offer(MODEL, 2048, 256, 64)
    answers = Answers("sim", lambda: offer, lambda: (0.0, 0.0), ManualClock())
    answers.use(TERMS)
    engine = _Told()
    seen = set()
    for tenant, text, seed in asked:
        request = ChatRequest(model=MODEL, messages=(Message("user", text),), seed=seed)
        job = Job(request=request, request_id="r", deadline_s=1e12, tenant=tenant)
        sink = _Sink()
        answers.submit(job, sink, engine.submit)
        assert sink.text == f"{tenant}|{text}|{seed}"
        assert sink.cached == ((tenant, text, seed) in seen)
        seen.add((tenant, text, seed))


class _Sink:
    def __init__(self) -> None:
        self.text = ""
        self.cached = False

    def accepted(self, queue_ms: float, load: float) -> None: ...

    def tokens(self, position: int, ids: tuple[int, ...], text: str) -> None:
        self.text += text

    def end(
        self, finish: str, prompt_tokens: int, completion_tokens: int, age_s: float | None = None
    ) -> None:
        self.cached = age_s is not None

    def failed(self, failed: object) -> None: ...


PIECES = st.lists(
    st.tuples(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3), st.text(max_size=4)),
    max_size=12,
)


@given(PIECES, st.text(max_size=5))
def test_a_whole_answer_is_told_apart_wherever_that_is_known(
    pieces: list[tuple[list[int], str]], tail: str
) -> None:
    recording, ids, text = Recording(), [], ""
    for numbers, part in pieces:
        recording.add(len(ids), tuple(numbers), part)
        ids += numbers
        text += part
    recording.add(len(ids), (), tail)
    whole = recording.whole(1000.0, 60.0, "stop", 3, len(ids))
    assert whole is not None
    name = b"n" * 32
    assert wholes.decode(name, wholes.encode(name, whole)) == whole
    assert wholes.decode(b"m" * 32, wholes.encode(name, whole)) is None
    known, shown = {0: ""}, ""
    at = 0
    for numbers, part in pieces:
        at, shown = at + len(numbers), shown + part
        known[at] = shown
    for cut in range(len(ids) + 1):
        found = whole.after(tuple(ids[:cut]))
        if cut not in known:
            assert found is None
            continue
        assert found is not None
        assert known[cut] + "".join(part for _, _, part in found) == text + tail
        assert ids[:cut] + [n for _, numbers, _ in found for n in numbers] == ids


def test_a_recording_with_a_hole_is_no_answer() -> None:
    recording = Recording()
    recording.add(0, (1,), "a")
    recording.add(2, (3,), "c")
    assert recording.whole(0.0, 60.0, "stop", 1, 3) is None
    strange = Recording()
    strange.add(0, (2**32,), "a")
    strange.add(1, (3,), "b")
    assert strange.whole(0.0, 60.0, "stop", 1, 2) is None
    whole = Recording()
    whole.add(0, (1,), "a")
    assert whole.whole(0.0, 60.0, "stop", 1, 2) is None


@pytest.mark.parametrize(
    ("wall_s", "left_s"),
    [(1000.0, 60.0), (1059.0, 1.0), (1061.0, 0.0), (996.0, 60.0), (990.0, 0.0)],
)
def test_clocks_of_a_region_may_differ_a_little(wall_s: float, left_s: float) -> None:
    whole = Recording().whole(1000.0, 60.0, "stop", 1, 0)
    assert whole is not None
    assert wholes.left_s(whole, wall_s) == left_s
