"""Those that had their turn and wait again."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topology.fair_queue import Entry, PriorityQueue, QueueFull

LATE = 1e9


def entry(number: int, urgency: int = 3, tenant: str = "", size: int = 1) -> Entry:
    return Entry(number, urgency, LATE, size, tenant=tenant)


def test_it_is_the_first_of_its_tenant() -> None:
    queue = PriorityQueue(8)
    for number in (1, 2, 3):
        queue.push(entry(number))
    first = queue.pop()
    assert first is not None and first.id == 1
    queue.put_back(first)
    assert queue.peek() == first and len(queue) == 3 and 1 in queue
    assert [found.id for found in iter(queue.pop, None)] == [1, 2, 3]


def test_it_takes_no_room_and_gives_way_to_nobody() -> None:
    queue = PriorityQueue(1)
    queue.push(entry(1, 6))
    gone = queue.pop()
    assert gone is not None
    queue.put_back(gone)
    assert queue.has_room(6) and queue.push(entry(2, 6)) is None
    with pytest.raises(QueueFull):
        queue.push(entry(3, 6))
    displaced = queue.push(entry(4, 0))
    assert displaced is not None and displaced.id == 2
    with pytest.raises(QueueFull):
        queue.push(entry(5, 0))  # below it waits only who had a turn
    assert [found.id for found in iter(queue.pop, None)] == [4, 1]


def test_it_pays_for_its_turn_once() -> None:
    """A tenant whose requests are put back gets as much as another."""
    queue, rng, served = PriorityQueue(1000), Random(1), {"a": 0, "b": 0}
    for number in range(400):
        queue.push(entry(number, 3, "ab"[number % 2], 10))
    for _ in range(300):
        found = queue.pop()
        assert found is not None
        if found.tenant == "a" and rng.random() < 0.5:
            queue.put_back(found)
            continue
        served[found.tenant] += 1
        assert abs(served["a"] - served["b"]) <= 2


operations = st.lists(
    st.tuples(
        st.sampled_from(("push", "push", "pop", "return", "cancel", "expire")),
        st.integers(0, 2),
        st.sampled_from("ab"),
        st.integers(1, 30),
    ),
    max_size=150,
)


@given(capacity=st.integers(0, 5), script=operations)
def test_nobody_is_lost_and_the_counts_agree(
    capacity: int, script: list[tuple[str, int, str, int]]
) -> None:
    queue, held, back, now, out = PriorityQueue(capacity), dict[int, Entry](), set[int](), 0.0, []
    for number, (verb, urgency, tenant, value) in enumerate(script):
        if verb == "push":
            new = Entry(number, urgency, now + value, value, tenant=tenant)
            try:
                displaced = queue.push(new)
            except QueueFull:
                assert len(held) - len(back) >= capacity
                continue
            held[number] = new
            if displaced is not None:
                assert displaced.id not in back
                del held[displaced.id]
        elif verb == "pop":
            expected = queue.peek(now)
            found = queue.pop(now)
            assert found == expected and (found is None) == (not held)
            if found is not None:
                mine = [i for i in back if held[i].urgency == found.urgency]
                same = [i for i in mine if held[i].tenant == found.tenant]
                assert found.id in same or not same
                del held[found.id]
                back.discard(found.id)
                out.append(found)
        elif verb == "return" and out:
            one = out.pop()
            if one.leaves_s > now:
                queue.put_back(one)
                held[one.id] = one
                back.add(one.id)
        elif verb == "cancel":
            assert queue.cancel(value) == (value in held)
            held.pop(value, None)
            back.discard(value)
        elif verb == "expire":
            now += value / 10
            gone = {late.id for late in queue.expire(now)}
            assert gone == {i for i, e in held.items() if e.leaves_s <= now}
            for late in gone:
                del held[late]
                back.discard(late)
        assert len(queue) == len(held)
        counts = tuple(sum(e.urgency == u for e in held.values()) for u in range(3))
        assert queue.waiting()[:3] == counts
        ahead = queue.ahead_of(7)
        assert ahead.requests == len(held)
        assert ahead.input_tokens == sum(e.input_tokens for e in held.values())
