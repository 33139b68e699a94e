"""The waiting room, against a list that is sorted anew each time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from region_core.errors import QueueFull
from region_core.scheduling.queue import Entry, PriorityQueue


class Naive:
    """The same promises, kept the slow way."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held: list[Entry] = []  # in the order of arrival

    def push(self, entry: Entry) -> Entry | None:
        displaced = None
        if len(self.held) >= self.capacity:
            below = [held for held in self.held if held.urgency > entry.urgency]
            if not below:
                raise QueueFull("full")
            worst = max(held.urgency for held in below)
            displaced = [held for held in below if held.urgency == worst][-1]
            self.held.remove(displaced)
        self.held.append(entry)
        return displaced

    def pop(self) -> Entry | None:
        if not self.held:
            return None
        best = min(self.held, key=lambda held: held.urgency)  # min takes the first of equals
        self.held.remove(best)
        return best

    def cancel(self, entry_id: int) -> bool:
        found = [held for held in self.held if held.id == entry_id]
        self.held = [held for held in self.held if held.id != entry_id]
        return bool(found)

    def expire(self, now: float) -> set[int]:
        gone = {held.id for held in self.held if held.deadline_s <= now}
        self.held = [held for held in self.held if held.id not in gone]
        return gone


operations = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(0, 7), st.integers(0, 50)),
        st.tuples(st.just("pop"), st.none(), st.none()),
        st.tuples(st.just("cancel"), st.integers(0, 40), st.none()),
        st.tuples(st.just("advance"), st.integers(0, 10), st.none()),
        st.tuples(st.just("ahead"), st.integers(0, 7), st.none()),
    ),
    max_size=80,
)


@given(capacity=st.integers(0, 6), script=operations)
def test_like_the_naive_queue(capacity: int, script: list[tuple[str, int, int]]) -> None:
    queue, naive, now, count = PriorityQueue(capacity), Naive(capacity), 0.0, 0
    for verb, first, second in script:
        if verb == "push":
            count += 1
            entry = Entry(count, first, now + second, 1)
            below = any(held.urgency > first for held in naive.held)
            assert queue.has_room(first) == (len(naive.held) < capacity or below)
            try:
                expected = naive.push(entry)
            except QueueFull:
                with pytest.raises(QueueFull):
                    queue.push(entry)
            else:
                assert queue.push(entry) == expected
        elif verb == "pop":
            assert queue.pop() == naive.pop()
        elif verb == "cancel":
            assert queue.cancel(first) == naive.cancel(first)
        elif verb == "advance":
            now += first
            assert set(queue.expire(now)) == naive.expire(now)
        else:
            assert queue.ahead_of(first) == sum(h.urgency <= first for h in naive.held)
        assert len(queue) == len(naive.held)
        assert all(held.id in queue for held in naive.held)


def test_the_heap_of_deadlines_stays_bounded() -> None:
    queue = PriorityQueue(4)
    for number in range(10_000):
        queue.push(Entry(number, 3, 1e9 + number, 1))
        queue.cancel(number)
    assert len(queue._deadlines) <= 16
    assert queue.next_deadline() is not None


def test_a_full_queue_turns_the_least_urgent_away() -> None:
    queue = PriorityQueue(2)
    queue.push(Entry(1, 7, 1e9, 1))
    queue.push(Entry(2, 7, 1e9, 1))
    displaced = queue.push(Entry(3, 0, 1e9, 1))
    assert displaced is not None and displaced.id == 2  # the last to have come
    with pytest.raises(QueueFull):
        queue.push(Entry(4, 7, 1e9, 1))
    assert [entry.id for entry in iter(queue.pop, None)] == [3, 1]
