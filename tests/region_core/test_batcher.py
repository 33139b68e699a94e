"""Continuous batching: examples, and properties against a naive account of every sequence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from region_core.scheduling.batcher import Admitted, Batcher, Limits
from region_core.scheduling.plan import Chunk, Step
from topology.fair_queue import Entry, QueueFull

LATE = 1e9


def batcher(slots: int = 2, step: int = 64, chunk: int = 32, waiting: int = 8) -> Batcher:
    return Batcher(Limits(slots=slots, step_tokens=step, chunk_tokens=chunk, waiting=waiting))


def test_input_in_chunks_then_decoding() -> None:
    b = batcher(chunk=10)
    b.submit(Entry(1, 3, LATE, 25))
    assert b.plan(0.0).admitted == (Admitted(1, 0),)
    # The first plan has taken the first chunk.
    assert b.plan(0.0).step == Step((Chunk(0, 10, 10, False),), ())
    assert b.plan(0.0).step == Step((Chunk(0, 20, 5, True),), ())
    assert b.plan(0.0).step == Step((), (0,))
    b.finish(1)
    plan = b.plan(1.0)
    assert plan.released == (0,) and plan.step.empty
    assert b.idle


def test_a_long_prompt_does_not_stop_the_others() -> None:
    b = batcher(step=16, chunk=32)
    b.submit(Entry(1, 3, LATE, 1))
    b.plan(0.0)
    b.submit(Entry(2, 3, LATE, 100))
    for _ in range(6):
        step = b.plan(0.0).step
        assert step.decodes == (0,)
        assert step.tokens <= 16


def test_join_and_leave_mid_batch() -> None:
    b = batcher(slots=2)
    for number in (1, 2, 3):
        b.submit(Entry(number, 3, LATE, 4))
    b.plan(0.0)
    assert b.plan(0.0).step.decodes == (0, 1)
    b.finish(1)
    plan = b.plan(1.0)
    assert plan.released == (0,)
    assert plan.admitted == (Admitted(3, 0),)
    assert plan.step == Step((Chunk(0, 0, 4, True),), (1,))


def test_cancelled_frees_its_slot_in_the_next_plan() -> None:
    b = batcher(slots=1)
    b.submit(Entry(1, 3, LATE, 4))
    b.submit(Entry(2, 3, LATE, 4))
    b.plan(0.0)
    assert b.cancel(1) and not b.cancel(1)
    plan = b.plan(0.0)
    assert plan.released == (0,) and plan.admitted == (Admitted(2, 0),)


def test_deadlines_end_those_that_wait_and_those_that_run() -> None:
    b = batcher(slots=1)
    b.submit(Entry(1, 3, 10.0, 4))
    b.submit(Entry(2, 3, 5.0, 4))
    b.plan(0.0)
    assert b.plan(6.0).expired == (2,)
    plan = b.plan(10.0)
    assert plan.expired == (1,) and plan.released == (0,)
    assert b.idle


def test_urgent_input_goes_first() -> None:
    b = batcher(slots=3, step=12, chunk=10)
    b.submit(Entry(1, 5, LATE, 30))
    b.plan(0.0)
    b.submit(Entry(2, 0, LATE, 9))
    assert b.plan(0.0).step.chunks == (Chunk(1, 0, 9, True), Chunk(0, 10, 3, False))


def test_no_room_to_wait_is_still_room_to_run() -> None:
    b = batcher(slots=1, waiting=0)
    assert b.has_room(3)
    b.submit(Entry(1, 3, LATE, 1))
    assert not b.has_room(3)
    with pytest.raises(QueueFull):
        b.submit(Entry(2, 3, LATE, 1))
    b.plan(0.0)
    assert not b.has_room(3)
    b.finish(1)
    b.submit(Entry(3, 3, LATE, 1))
    assert b.plan(1.0).admitted == (Admitted(3, 0),)


# Properties


entries = st.tuples(st.integers(0, 7), st.integers(1, 90), st.integers(1, 40), st.integers(1, 8))
scripts = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), entries),
        st.tuples(st.just("cancel"), st.integers(1, 20)),
        st.tuples(st.just("step"), st.integers(0, 3)),
    ),
    max_size=60,
)


@given(
    slots=st.integers(1, 4),
    chunk=st.integers(1, 40),
    extra=st.integers(1, 40),
    script=scripts,
)
def test_every_sequence_is_served_once_and_in_order(
    slots: int, chunk: int, extra: int, script: list[tuple[str, object]]
) -> None:
    """A naive account of each sequence, kept beside the batcher, must agree with each plan."""
    budget = slots + extra
    b = Batcher(Limits(slots=slots, step_tokens=budget, chunk_tokens=chunk, waiting=4))
    world = _World(b, budget, chunk)
    for verb, value in [*script, *[("step", 1)] * 400]:
        world.do(verb, value)
        if verb == "step" and b.idle:
            continue
    assert b.idle and not world.by_slot  # everybody got to an end
    assert world.ended == world.submitted


class _World:
    """What must be true of a fair batcher, said plainly."""

    def __init__(self, b: Batcher, budget: int, chunk: int) -> None:
        self.b, self.budget, self.chunk = b, budget, chunk
        self.now = 0.0
        self.submitted: set[int] = set()
        self.ended: set[int] = set()
        self.waiting: dict[int, Entry] = {}
        self.by_slot: dict[int, list[int]] = {}  # slot: [id, input left, tokens wanted]
        self.wanted: dict[int, int] = {}
        self.entries: dict[int, Entry] = {}
        self.gone: set[int] = set()  # slots whose sequence left since the last plan

    def do(self, verb: str, value: object) -> None:
        if verb == "submit":
            self._submit(*value)  # type: ignore[misc]
        elif verb == "cancel":
            self._cancel(int(value))  # type: ignore[call-overload]
        else:
            self.now += int(value)  # type: ignore[call-overload]
            self._step()

    def _submit(self, urgency: int, size: int, patience: int, wanted: int) -> None:
        entry = Entry(len(self.submitted) + 1, urgency, self.now + patience, size)
        unused = self.b.limits.slots - len(self.by_slot)
        full = len(self.waiting) >= 4 + unused
        if full and all(held.urgency <= urgency for held in self.waiting.values()):
            return
        displaced = self.b.submit(entry)
        assert (displaced is not None) == full
        if displaced is not None:
            del self.waiting[displaced.id]
            self.ended.add(displaced.id)
        self.submitted.add(entry.id)
        self.waiting[entry.id] = self.entries[entry.id] = entry
        self.wanted[entry.id] = wanted

    def _cancel(self, entry_id: int) -> None:
        slot = next((s for s, held in self.by_slot.items() if held[0] == entry_id), None)
        known = entry_id in self.waiting or slot is not None
        assert self.b.cancel(entry_id) == known
        if known:
            self.ended.add(entry_id)
        self.waiting.pop(entry_id, None)
        if slot is not None:
            del self.by_slot[slot]
            self.gone.add(slot)

    def _step(self) -> None:
        plan = self.b.plan(self.now)
        late = {i for i, e in self.entries.items() if e.deadline_s <= self.now} - self.ended
        assert set(plan.expired) == late
        for entry_id in late:
            self.ended.add(entry_id)
            self.waiting.pop(entry_id, None)
        for slot in [s for s, held in self.by_slot.items() if held[0] in late]:
            del self.by_slot[slot]
            self.gone.add(slot)
        assert set(plan.released) == self.gone
        self.gone.clear()
        self._check_admitted(plan.admitted)
        self._check_step(plan.step)

    def _check_admitted(self, admitted: tuple[Admitted, ...]) -> None:
        order = sorted(self.waiting.values(), key=lambda e: (e.urgency, e.id))
        free = self.b.limits.slots - len(self.by_slot)
        assert [a.id for a in admitted] == [e.id for e in order[:free]]
        for one in admitted:
            assert one.slot not in self.by_slot
            entry = self.waiting.pop(one.id)
            self.by_slot[one.slot] = [one.id, entry.input_tokens, self.wanted[one.id]]

    def _check_step(self, step: Step) -> None:
        assert step.tokens <= self.budget
        assert step.decodes == tuple(sorted(s for s, held in self.by_slot.items() if not held[1]))
        slots = [chunk.slot for chunk in step.chunks]
        assert len(set(slots)) == len(slots) and not set(slots) & set(step.decodes)
        pending = [s for s, held in self.by_slot.items() if held[1]]
        assert bool(slots) == bool(pending)  # the budget leaves room for input: no starvation
        sampled = set(step.decodes)
        for chunk in step.chunks:
            held = self.by_slot[chunk.slot]
            assert 1 <= chunk.count <= self.chunk
            assert chunk.start == self.entries[held[0]].input_tokens - held[1]
            held[1] -= chunk.count
            assert chunk.last == (held[1] == 0)
            if chunk.last:
                sampled.add(chunk.slot)
        for slot in sampled:
            held = self.by_slot[slot]
            held[2] -= 1
            if held[2] == 0:
                self.b.finish(held[0])
                self.ended.add(held[0])
                del self.by_slot[slot]
                self.gone.add(slot)
