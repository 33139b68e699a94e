"""The batcher where VIPs take slots, against a naive account of every sequence."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from region_core.scheduling.batcher import Admitted, Batcher, Limits, Preempted
from region_core.scheduling.forecast import Ask
from region_core.scheduling.plan import Chunk, Step
from topology.fair_queue import FLOOR, URGENCIES, Entry, QueueFull

LATE = 1e9


def batcher(slots: int = 1, preemptions: int = 2, waiting: int = 8, chunk: int = 32) -> Batcher:
    limits = Limits(slots, slots + chunk, chunk, waiting, preemptions)
    return Batcher(limits)


def entry(number: int, urgency: int, size: int = 4, tenant: str = "") -> Entry:
    return Entry(number, urgency, LATE, size, limit_tokens=100, tenant=tenant)


def test_it_waits_again_with_what_it_has_made_and_goes_on() -> None:
    b = batcher()
    b.submit(entry(1, 3))
    assert b.plan(0.0).step == Step((Chunk(0, 0, 4, True),))  # its first token
    assert b.plan(0.0).step == Step((), (0,))  # its second
    b.submit(entry(2, 3))
    b.submit(entry(3, 1))
    plan = b.plan(0.0)
    assert plan.preempted == (Preempted(1, 0, 6),) and plan.released == (0,)
    assert plan.admitted == (Admitted(3, 0),) and plan.step == Step((Chunk(0, 0, 4, True),))
    b.finish(3, True)
    plan = b.plan(0.0)
    assert plan.admitted == (Admitted(1, 0),)  # before 2, which came while it ran
    assert plan.step == Step((Chunk(0, 0, 6, True),)) and not plan.preempted
    assert b.preemptions == 1


def test_a_full_room_takes_it_back_and_turns_a_newcomer_away() -> None:
    b = batcher(waiting=1)
    b.submit(entry(1, 6))
    b.plan(0.0)
    b.submit(entry(2, 1))
    assert b.plan(0.0).preempted[0].id == 1
    b.submit(entry(3, 6))  # the room is for one, and who gave up a slot takes none of it
    assert b.submit(entry(4, 1)) == entry(3, 6)  # nor does it lose its place to a VIP
    b.finish(2, True)
    order = []
    while not b.idle:
        order += [one.id for one in b.plan(0.0).admitted]
        b.finish(order[-1], True)
    assert order == [4, 1]


def test_one_that_gave_up_its_slot_can_be_cancelled_and_expires() -> None:
    b = batcher()
    b.submit(Entry(1, 3, 5.0, 4, limit_tokens=100))
    b.plan(0.0)
    b.submit(entry(2, 1))
    assert b.plan(0.0).preempted[0].id == 1
    assert b.plan(5.0).expired == (1,)
    b = batcher()
    b.submit(entry(1, 3))
    b.plan(0.0)
    b.submit(entry(2, 1))
    b.plan(0.0)
    assert b.cancel(1) and not b.cancel(1) and b.waiting == 0


def test_no_vip_loses_its_slot_and_nobody_more_than_twice() -> None:
    b = batcher()
    b.submit(entry(1, 3))
    b.plan(0.0)
    for number in (2, 3, 4):
        b.submit(entry(number, 1))
        plan = b.plan(0.0)
        taken = number < 4
        assert bool(plan.preempted) == taken
        if taken:
            assert not b.plan(0.0).preempted  # the VIP stays
            b.finish(number, True)
            assert b.plan(0.0).admitted == (Admitted(1, 0),)


def test_the_floors_place_is_kept() -> None:
    b = batcher()
    b.submit(entry(100, 3))
    for number in range(5):
        b.submit(entry(number, 1))
    number, places = 200, 0
    while (plan := b.plan(0.0)).admitted != (Admitted(100, 0),):
        places += 1
        assert len(plan.admitted) == 1 and places <= FLOOR + URGENCIES
        b.finish(plan.admitted[0].id, True)
        number += 1
        b.submit(entry(number, 1))
    for _ in range(5):
        assert b.queue.waiting()[1] > 0
        assert not plan.preempted and not plan.released[1:]
        plan = b.plan(0.0)


def test_preemption_can_be_turned_off() -> None:
    b = batcher(preemptions=0)
    b.submit(entry(1, 6))
    b.plan(0.0)
    b.submit(entry(2, 0))
    assert not b.plan(0.0).preempted


@dataclass
class _Sequence:
    entry: Entry
    wanted: int  # tokens of its answer
    made: int = 0
    left: int = 0  # input yet to be taken in
    slot: int | None = None
    lost: int = 0  # slots
    floored: bool = False


class _World:
    """Every sequence, counted plainly."""

    def __init__(self, b: Batcher) -> None:
        self.b = b
        self.all: dict[int, _Sequence] = {}
        self.ended: set[int] = set()
        self.now = 0.0

    def submit(self, urgency: int, size: int, wanted: int, tenant: str) -> None:
        number = len(self.all) + 1
        new = Entry(number, urgency, LATE, size, limit_tokens=60, tenant=tenant)
        try:
            displaced = self.b.submit(new)
        except QueueFull:
            return
        self.all[number] = _Sequence(new, wanted)
        if displaced is not None:
            assert self.all[displaced.id].lost == 0  # who had a slot gives way to nobody
            self.ended.add(displaced.id)

    def cancel(self, number: int) -> None:
        live = number in self.all and number not in self.ended
        assert self.b.cancel(number) == live
        if live:
            self.ended.add(number)

    def step(self) -> None:
        b = self.b
        self.now += 0.01
        held = {s.slot: i for i, s in self.all.items() if s.slot is not None}
        plan = b.plan(self.now)
        for gone in [i for i in held.values() if i in self.ended]:
            assert self.all[gone].slot in plan.released
            self.all[gone].slot = None
        for one in plan.preempted:
            loser = self.all[one.id]
            assert loser.slot == one.slot and one.slot in plan.released
            assert loser.entry.urgency > 1 and not loser.floored
            assert one.input_tokens == loser.entry.input_tokens + loser.made
            loser.slot, loser.lost = None, loser.lost + 1
            assert loser.lost <= b.limits.preemptions
        for got in plan.admitted:
            winner = self.all[got.id]
            assert got.slot not in {s.slot for s in self.all.values()}
            assert winner.slot is None and got.id not in self.ended
            winner.slot, winner.left = got.slot, winner.entry.input_tokens + winner.made
            waiting = b.queue.waiting()
            winner.floored = winner.entry.urgency > 1 and sum(waiting[: winner.entry.urgency]) > 0
        if plan.preempted:
            taken = {one.slot for one in plan.preempted}
            got = [self.all[a.id].entry.urgency for a in plan.admitted if a.slot in taken]
            assert len(got) == len(taken) and max(got) <= 1  # each slot goes to a VIP, at once
        assert not b.unused or not b.waiting  # work is conserved
        self._run(plan.step)

    def _run(self, step: Step) -> None:
        by_slot = {s.slot: i for i, s in self.all.items() if s.slot is not None}
        sampled = list(step.decodes)
        assert step.decodes == tuple(sorted(s for s, i in by_slot.items() if not self.all[i].left))
        for chunk in step.chunks:
            one = self.all[by_slot[chunk.slot]]
            assert chunk.start == one.entry.input_tokens + one.made - one.left
            one.left -= chunk.count
            assert chunk.last == (one.left == 0)
            if chunk.last:
                sampled.append(chunk.slot)
        self.b.ran(step, 0.01, self.now)
        for slot in sampled:
            one = self.all[by_slot[slot]]
            one.made += 1
            if one.made == one.wanted:
                self.b.finish(one.entry.id, True)
                self.ended.add(one.entry.id)


scripts = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"),
            st.tuples(
                st.sampled_from((0, 1, 1, 3, 3, 6)),
                st.integers(1, 40),
                st.integers(1, 12),
                st.sampled_from("ab"),
            ),
        ),
        st.tuples(st.just("cancel"), st.integers(1, 30)),
        st.tuples(st.just("step"), st.integers(1, 4)),
    ),
    max_size=80,
)


@given(slots=st.integers(1, 3), chunk=st.integers(1, 40), times=st.integers(0, 3), script=scripts)
def test_whatever_happens_each_sequence_makes_each_token_once(
    slots: int, chunk: int, times: int, script: list[tuple[str, object]]
) -> None:
    b = batcher(slots, times, waiting=5, chunk=chunk)
    world = _World(b)
    for verb, value in script:
        if verb == "submit":
            world.submit(*value)  # type: ignore[misc]
        elif verb == "cancel":
            world.cancel(int(value))  # type: ignore[call-overload]
        else:
            for _ in range(int(value)):  # type: ignore[call-overload]
                world.step()
    for _ in range(3000):
        if b.idle:
            break
        world.step()
    assert b.idle and world.ended == set(world.all) and not b._paused


def known(b: Batcher, token_s: float = 0.0001) -> float:
    """Let steps of ten milliseconds, and tokens of input, be learnt. Returns the time."""
    now = 0.0
    for number in range(1000, 1012):
        b.submit(Entry(number, 6, LATE, 10 * (number % 4 + 1), limit_tokens=100))
        step = b.plan(now).step
        took = 0.01 + token_s * (step.tokens - len(step.decodes))
        b.ran(step, took, now + took)
        b.finish(number)
        now += took
    assert b.forecast.steps.known
    return now


def test_a_vip_that_can_take_a_slot_is_not_refused_for_want_of_time() -> None:
    b = batcher()
    now = known(b)
    b.submit(entry(1, 6))
    b.plan(now)
    soon = now + 0.2
    for urgency, refused in ((1, False), (3, True)):
        estimate, refusal = b.foresee(Ask(urgency, "", 4, 100), soon, now)
        assert (refusal is not None) == refused
        assert (estimate.wait_s > 0) == refused
    assert b.foresee(Ask(1, "", 4, 100), now + 1e-4, now)[1] is not None  # nor in time like this
    b.submit(entry(2, 1))
    assert b.plan(now).preempted
    assert b.foresee(Ask(1, "", 4, 100), soon, now)[1] is not None  # no slot is left to take


def test_what_cannot_have_its_first_token_in_time_is_dropped_before_its_prefill() -> None:
    b = batcher(slots=2)
    now = known(b)
    b.submit(entry(1, 3))
    b.plan(now)
    b.submit(Entry(2, 3, now + 0.01, 400, limit_tokens=100))
    b.submit(Entry(3, 3, now + 5.0, 400, limit_tokens=100))
    plan = b.plan(now + 0.001)
    assert plan.expired == (2,) and [one.id for one in plan.admitted] == [3]
