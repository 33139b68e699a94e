"""Regions that stand still, against those that are merely slow, and a process that slept."""

from __future__ import annotations

from typing import Any

import pytest

from edge_node.forward.progress import LOOK_EVERY_S, Look, Progress


class Stream:
    """An answer under way."""

    def __init__(self, region: str, silence_s: float = 20.0) -> None:
        self.region = region
        self.begun = True
        self.waiting = True
        self.pieces = 1
        self.silence_s = silence_s
        self.seen = -1
        self.moved_at = 0.0


class World:
    """Looks every 0.1 s; `rates` are pieces a second of each answer of a region."""

    def __init__(self, *streams: Stream) -> None:
        self.progress = Progress()
        self.streams = list(streams)
        self.now = 500.0
        self._due: dict[int, float] = {}

    def run(self, seconds: float, **rates: float) -> list[tuple[float, str]]:
        """The stalls that were seen: after how long, and where."""
        begin, found = self.now, []
        for _ in range(round(seconds / LOOK_EVERY_S)):
            self.now += LOOK_EVERY_S
            for stream in self.streams:
                due = self._due.get(id(stream), 0.0) + rates.get(stream.region, 0.0) * LOOK_EVERY_S
                stream.pieces += int(due)
                self._due[id(stream)] = due - int(due)
            found += [(round(self.now - begin, 1), s.region) for s in self.look().stalls]
        return found

    def look(self) -> Look[Any]:
        return self.progress.look(self.streams, self.now)


def test_a_region_that_stands_still_is_found_after_a_second() -> None:
    world = World(*(Stream("dubai") for _ in range(3)), Stream("frankfurt"))
    assert world.run(5, dubai=20, frankfurt=20) == []
    [(after, region)] = world.run(1.5, frankfurt=20)
    assert region == "dubai"
    assert 1.0 <= after <= 1.3


def test_one_answer_that_moves_speaks_for_its_region() -> None:
    still, moving = Stream("dubai", silence_s=4.0), Stream("dubai", silence_s=4.0)
    world = World(still, moving)
    world.run(3, dubai=20)
    world.streams = [moving]
    for _ in range(60):
        world.run(0.1, dubai=20)
        world.streams = [still, moving]
        look = world.look()
        world.streams = [moving]
        assert look.stalls == ()
    assert look.silent == (still,)  # it is looked at by its own limit


@pytest.mark.parametrize("per_s", [0.8, 2.0, 5.0])
def test_a_slow_region_is_not_taken_for_a_dead_one(per_s: float) -> None:
    world = World(Stream("dubai"))
    assert world.run(120, dubai=per_s) == []
    limit_s = world.progress.limit_s("dubai")
    assert 8 / per_s <= limit_s <= 14 / per_s
    [(after, _)] = world.run(limit_s + 1)
    assert after == pytest.approx(limit_s, abs=0.5)


def test_a_region_of_which_nothing_is_known_gets_more_time() -> None:
    world = World(Stream("dubai"))
    world.run(0.2)
    assert world.run(2.5) == []
    assert [region for _, region in world.run(2)] == ["dubai"]


def test_a_pause_that_a_region_made_and_came_back_from_is_known_afterwards() -> None:
    world = World(Stream("dubai"), Stream("dubai"))
    world.run(5, dubai=20)
    assert world.run(0.9) == []
    world.run(1, dubai=20)
    assert world.run(1.3) == []
    world.run(600, dubai=20)
    assert len(world.run(1.4)) == 1  # and forgotten after minutes


def test_time_in_which_this_process_slept_counts_for_nothing() -> None:
    world = World(Stream("dubai", silence_s=2.0))
    world.run(5, dubai=20)
    for _ in range(4):
        world.now += 30.0  # stopped, or busy: what came meanwhile was not read
        look = world.look()
        assert (look.stalls, look.silent) == ((), ())
    [(after, _)] = world.run(0.8)
    assert after <= 0.7


def test_answers_that_wait_for_their_clients_say_nothing_of_their_region() -> None:
    stream = Stream("dubai", silence_s=2.0)
    world = World(stream)
    world.run(5, dubai=20)
    stream.waiting = False
    assert world.run(10) == []
    stream.waiting = True
    assert world.run(0.9) == []
    assert len(world.run(0.5)) == 1


def test_answers_that_have_not_begun_say_nothing_either() -> None:
    stream = Stream("dubai")
    stream.begun = False
    assert World(stream).run(30) == []


def test_a_region_that_begins_anew_after_a_quiet_time_is_not_blamed_for_it() -> None:
    world = World(Stream("dubai"))
    world.run(5, dubai=20)
    world.streams = []
    world.run(5)
    world.progress.forget()
    world.now += 3600
    world.streams = [Stream("dubai")]
    assert world.run(0.9) == []
    assert world.run(1, dubai=20) == []


def test_a_stall_that_nobody_can_leave_is_said_again_and_not_at_each_look() -> None:
    world = World(Stream("dubai"))
    world.run(5, dubai=20)
    found = world.run(5)
    assert 3 <= len(found) <= 5
