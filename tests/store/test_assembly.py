"""Whole revisions out of however etcd cuts its stream."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.store.assembly import Assembly, Event, OutOfOrder
from control_plane.store.base import Change, Entry

# Revisions as (gap to the one before, how many keys it changes).
HISTORY = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5)), max_size=12)


def events_of(history: list[tuple[int, int]], after: int) -> list[Event]:
    events, revision = [], after
    for gap, keys in history:
        revision += gap
        for key in range(keys):
            value = None if (revision + key) % 3 == 0 else b"%d" % revision
            events.append(Event(f"/{key}", revision, value))
    return events


def naive(events: list[Event]) -> list[Change]:
    changes = []
    for revision in sorted({event.revision for event in events}):
        here = [event for event in events if event.revision == revision]
        puts = tuple(Entry(e.key, e.value, revision) for e in here if e.value is not None)
        changes.append(Change(revision, puts, tuple(e.key for e in here if e.value is None)))
    return changes


@given(HISTORY, st.integers(0, 5), st.integers(0, 2**32))
def test_any_fragmentation_gives_the_same_changes(
    history: list[tuple[int, int]], repeated: int, seed: int
) -> None:
    """Responses end at revisions; fragments end anywhere; some was seen before; it breaks off."""
    rng = Random(seed)
    events = events_of(history, after=10)
    expected = naive(events)
    after, out = 10, []
    while True:
        # A stream begins up to `repeated` revisions early, and may break anywhere.
        assembly = Assembly(after)
        left = [event for event in events if event.revision > max(10, after - repeated)]
        breaks_at = rng.randint(0, len(left))
        cuts = {rng.randint(0, breaks_at) for _ in range(rng.randrange(5))} | {breaks_at}
        begin = 0
        for end in sorted(cuts):
            goes_on = 0 < end < len(left) and left[end].revision == left[end - 1].revision
            more_to_come = goes_on or rng.random() < 0.5
            out += assembly.feed(left[begin:end], more_to_come)
            begin = end
        after = assembly.after
        if breaks_at == len(left):
            out += assembly.feed([], more_to_come=False)
            break
    assert out == expected


def test_a_revision_is_held_back_until_it_is_whole() -> None:
    assembly = Assembly(4)
    assert assembly.feed([Event("/a", 5, b"1"), Event("/b", 6, b"2")], more_to_come=True) == [
        Change(5, (Entry("/a", b"1", 5),), ())
    ]
    assembly.progress(9)  # cannot be: events of revision 6 are still on their way
    assert assembly.after == 5
    assert assembly.feed([Event("/c", 6, None)], more_to_come=False) == [
        Change(6, (Entry("/b", b"2", 6),), ("/c",))
    ]
    assembly.progress(9)
    assembly.progress(7)
    assert assembly.after == 9
    assert assembly.feed([Event("/a", 9, b"")], more_to_come=False) == []


def test_a_stream_that_goes_back_is_not_trusted() -> None:
    assembly = Assembly(0)
    with pytest.raises(OutOfOrder):
        assembly.feed([Event("/a", 5, b""), Event("/a", 7, b""), Event("/a", 6, b"")], False)
