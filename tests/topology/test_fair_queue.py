"""The waiting room, against a list that is searched anew each time, and what it promises."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topology.fair_queue import FLOOR, URGENCIES, Entry, PriorityQueue, QueueFull

LATE = 1e9


def entry(number: int, urgency: int = 3, tenant: str = "", **changes: float) -> Entry:
    asked = {"deadline_s": LATE, "input_tokens": 1} | changes
    return Entry(number, urgency, tenant=tenant, **asked)  # type: ignore[arg-type]


class Naive:
    """The same promises, kept the slow way."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held: list[Entry] = []  # in the order of arrival
        self.passed = Counter[int]()
        self.tags: dict[tuple[int, str], tuple[float, int]] = {}
        self.served = Counter[int]()
        self.turns = 0

    def _of(self, urgency: int, tenant: str) -> list[Entry]:
        return [e for e in self.held if (e.urgency, e.tenant) == (urgency, tenant)]

    def _tag(self, urgency: int, tenant: str, tag: float) -> None:
        self.turns += 1
        self.tags[urgency, tenant] = (tag, self.turns)

    def _gives_way(self, new: Entry) -> Entry | None:
        below = [held for held in self.held if held.urgency > new.urgency]
        if below:
            rest = [held for held in below if held.urgency == max(h.urgency for h in below)]
        else:
            rest = [held for held in self.held if held.urgency == new.urgency]
        counts = Counter(held.tenant for held in rest)
        most = max(counts.values(), default=0)
        if not below and most <= counts[new.tenant] + 1:
            return None
        return max((h for h in rest if counts[h.tenant] == most), key=lambda held: held.id)

    def push(self, new: Entry) -> Entry | None:
        displaced = None
        if len(self.held) >= self.capacity:
            displaced = self._gives_way(new)
            if displaced is None:
                raise QueueFull("full")
            self.remove(displaced)
        if not self._of(new.urgency, new.tenant):
            self._tag(new.urgency, new.tenant, self.served[new.urgency] + new.cost)
        self.held.append(new)
        return displaced

    def remove(self, gone: Entry) -> None:
        self.held.remove(gone)
        if not self._of(gone.urgency, gone.tenant):
            del self.tags[gone.urgency, gone.tenant]
        if all(held.urgency != gone.urgency for held in self.held):
            self.served[gone.urgency] = self.passed[gone.urgency] = 0

    def pop(self, now: float) -> Entry | None:
        if not self.held:
            return None
        levels = sorted({held.urgency for held in self.held})
        due = [u for u in levels if self.passed[u] >= FLOOR]
        level = max(due, key=lambda u: self.passed[u]) if due else levels[0]
        for urgency in levels:
            self.passed[urgency] += 1
        self.passed[level] = 0
        (tag, _), tenant = min((at, name) for (u, name), at in self.tags.items() if u == level)
        mine = self._of(level, tenant)
        best = mine[-1] if mine[0].pressed(now) else mine[0]
        self.served[level] = tag  # type: ignore[assignment]
        self.remove(best)
        if len(mine) > 1:
            self._tag(level, tenant, tag + best.cost)
        return best

    def cancel(self, entry_id: int) -> bool:
        found = [held for held in self.held if held.id == entry_id]
        for held in found:
            self.remove(held)
        return bool(found)

    def expire(self, now: float) -> set[int]:
        gone = [held for held in self.held if held.leaves_s <= now]
        for held in gone:
            self.remove(held)
        return {held.id for held in gone}

    def ahead_of(self, urgency: int, tenant: str) -> int:
        turns = len(self._of(urgency, tenant)) + 1
        same = Counter(held.tenant for held in self.held if held.urgency == urgency)
        return sum(held.urgency < urgency for held in self.held) + sum(
            min(count, turns) for count in same.values()
        )


newcomers = st.tuples(
    st.integers(0, 2), st.sampled_from("abc"), st.integers(1, 50), st.integers(1, 9)
)
NOBODY = (0, "a", 1, 1)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.just(0), newcomers),
        st.tuples(st.just("pop"), st.just(0), st.just(NOBODY)),
        st.tuples(st.just("cancel"), st.integers(0, 40), st.just(NOBODY)),
        st.tuples(st.just("advance"), st.integers(0, 10), st.just(NOBODY)),
    ),
    max_size=120,
)


@given(capacity=st.integers(0, 9), script=operations)
def test_like_the_naive_queue(
    capacity: int, script: list[tuple[str, int, tuple[int, str, int, int]]]
) -> None:
    queue, naive, now, count = PriorityQueue(capacity), Naive(capacity), 0.0, 0
    for verb, value, (urgency, tenant, patience, size) in script:
        if verb == "push":
            count += 1
            new = entry(
                count, urgency, tenant, deadline_s=now + patience, since_s=now, input_tokens=size
            )
            room = queue.has_room(urgency, tenant=tenant)
            try:
                expected = naive.push(new)
            except QueueFull:
                assert not room
                with pytest.raises(QueueFull):
                    queue.push(new)
            else:
                assert room and queue.push(new) == expected
        elif verb == "pop":
            assert queue.pop(now) == naive.pop(now)
        elif verb == "cancel":
            assert queue.cancel(value) == naive.cancel(value)
        else:
            now += value
            assert {gone.id for gone in queue.expire(now)} == naive.expire(now)
        assert len(queue) == len(naive.held) <= capacity
        assert all(held.id in queue for held in naive.held)
        for level, name in ((0, "a"), (1, "b"), (2, "d")):
            ahead = queue.ahead_of(level, name)
            assert ahead.requests == naive.ahead_of(level, name)
            assert ahead.input_tokens <= sum(held.input_tokens for held in naive.held)


def test_work_is_conserved() -> None:
    """While anybody waits, somebody is served."""
    queue, rng = PriorityQueue(1000), Random(1)
    for number in range(1000):
        queue.push(entry(number, rng.randrange(8), str(rng.randrange(30))))
    served = [queue.pop() for _ in range(1000)]
    assert len({found.id for found in served if found is not None}) == 1000
    assert queue.pop() is None and len(queue) == 0


@given(seed=st.integers(0, 10**6), levels=st.integers(2, URGENCIES))
def test_no_level_starves(seed: int, levels: int) -> None:
    """Whatever comes, a level in which somebody waits gets one of FLOOR + URGENCIES places."""
    queue, rng, count = PriorityQueue(10_000), Random(seed), 0
    since = [0] * levels
    for urgency in range(levels):
        queue.push(entry(urgency, urgency))
    for place in range(400):
        for _ in range(2):  # more comes than is served, most of it urgent
            count += 1
            queue.push(entry(1000 + count, min(levels - 1, int(rng.expovariate(1.5)))))
        found = queue.pop()
        assert found is not None
        since[found.urgency] = place
        for urgency, waiting in enumerate(queue.waiting()[:levels]):
            if not waiting:
                since[urgency] = place
            assert place - since[urgency] <= FLOOR + URGENCIES


def test_the_floor_is_no_more_than_a_floor() -> None:
    queue = PriorityQueue(10_000)
    for number in range(3000):
        queue.push(entry(number, (1, 3, 6)[number % 3]))
    served = Counter(queue.pop().urgency for _ in range(1000))  # type: ignore[union-attr]
    assert served[1] >= 900 and served[3] >= 45 and served[6] >= 45


@given(seed=st.integers(0, 10**6), weight=st.sampled_from([1.0, 2.0, 5.0]))
def test_tenants_share_by_weight_whatever_their_requests_cost(seed: int, weight: float) -> None:
    """Two that always wait differ by no more than one request each, by their weight."""
    rng, queue = Random(seed), PriorityQueue(1000)
    most, number = 50, 0
    work = {"heavy": 0.0, "light": 0.0}
    weights = {"heavy": weight, "light": 1.0}
    for tenant in work:
        for _ in range(200):
            number += 1
            size = rng.randint(1, most)
            queue.push(entry(number, 3, tenant, input_tokens=size, weight=weights[tenant]))
    for _ in range(100):
        found = queue.pop()
        assert found is not None
        work[found.tenant] += found.cost
        assert abs(work["heavy"] - work["light"]) <= 2 * most * (1 + 1 / weight)


def test_however_many_tenants_come_an_older_one_is_served() -> None:
    queue = PriorityQueue(10_000)
    for number in range(50):
        queue.push(entry(number, 3, "old", input_tokens=10))
    served = Counter[str]()
    for number in range(2000):
        queue.push(entry(1000 + number, 3, f"new{number}", input_tokens=10))
        queue.push(entry(9000 + number, 3, f"more{number}", input_tokens=10))
        found = queue.pop()
        assert found is not None
        served["old" if found.tenant == "old" else "new"] += 1
    assert served["old"] >= 5
    assert len(queue._levels[3]._heap) <= 2 * len(queue) + 16


def test_one_tenant_may_not_fill_the_room() -> None:
    queue = PriorityQueue(4)
    for number in range(4):
        queue.push(entry(number, 3, "greedy"))
    assert not queue.has_room(3, tenant="greedy")
    for number, lost in ((4, 3), (5, 2)):
        displaced = queue.push(entry(number, 3, "other"))
        assert displaced is not None and displaced.id == lost
    assert not queue.has_room(3, tenant="other") and queue.has_room(3, tenant="third")
    assert queue.ahead_of(3, "third").requests == 2


# (now, what is done, what is served)
Step = tuple[float, str, int]
TIMED: dict[str, list[Step]] = {
    "calm: first come first served": [
        (0.0, "push", 1), (1.0, "push", 2), (2.0, "pop", 1), (3.0, "push", 3), (4.0, "pop", 2),
        (5.0, "pop", 3),
    ],
    "late: the newest first, until the first has left": [
        (0.0, "push", 1), (5.0, "push", 2), (6.0, "push", 3), (9.6, "pop", 3), (9.6, "push", 4),
        (9.7, "pop", 4), (10.0, "expire", 1), (10.1, "pop", 2),
    ],
    "late, with nobody else: the first still has its chance": [
        (0.0, "push", 1), (9.9, "pop", 1),
    ],
}  # fmt: skip


@pytest.mark.parametrize("steps", TIMED.values(), ids=list(TIMED))
def test_order_within_a_tenant(steps: list[Step]) -> None:
    """Each has ten seconds from when it came."""
    queue = PriorityQueue(8)
    for now, verb, number in steps:
        if verb == "push":
            queue.push(entry(number, since_s=now, deadline_s=now + 10))
        elif verb == "expire":
            assert [gone.id for gone in queue.expire(now)] == [number]
        else:
            found = queue.pop(now)
            assert found is not None and found.id == number, now


def test_what_is_of_no_use_any_more_leaves_before_its_deadline() -> None:
    queue = PriorityQueue(4)
    queue.push(entry(1, deadline_s=10.0, useful_s=8.0))
    queue.push(entry(2, deadline_s=7.0, useful_s=9.0))
    assert queue.next_deadline() == 7.0
    assert [gone.id for gone in queue.expire(7.5)] == [2]
    assert [gone.id for gone in queue.expire(8.0)] == [1]


def test_the_heap_of_deadlines_stays_bounded() -> None:
    queue = PriorityQueue(4)
    for number in range(10_000):
        queue.push(entry(number, deadline_s=1e9 + number))
        queue.cancel(number)
    assert len(queue._leaving) <= 16
    assert queue.next_deadline() is not None


def test_a_full_queue_turns_the_least_urgent_away() -> None:
    queue = PriorityQueue(2)
    queue.push(entry(1, 7))
    queue.push(entry(2, 7))
    displaced = queue.push(entry(3, 0))
    assert displaced is not None and displaced.id == 2  # the last to have come
    with pytest.raises(QueueFull):
        queue.push(entry(4, 7))
    assert [found.id for found in iter(queue.pop, None)] == [3, 1]
