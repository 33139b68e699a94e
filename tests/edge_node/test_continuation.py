"""A client's answer, whatever becomes of the regions and ways that give it.

Each exchange follows a script: pieces of the answer, frames that break the protocol, deaths,
refusals, silence, stalls, drains and hedges, in any order. Against all of them stands an oracle
that knows the whole answer: the client reads each token once and in order, with one end; or it
reads a beginning of it, and one error, and then there was nowhere left to go.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_node.errors import AttemptsExhausted, Refused
from edge_node.forward.memory import Answer, MemoryUpstream
from edge_node.forward.ways import MOST_WAYS
from edge_node.inflight import Cause
from tests.edge_node.trips import Trip
from tests.edge_node.worlds import RTT_MS, snapshot
from tests.topology.worlds import document
from topology.overlay.errors import PathDown, RegionFailure
from topology.overlay.frames import Accept, End, Failure, Request, Tokens
from topology.resources import parse

WORDS = ("Trade", " winds", " carry", " ships", " and", " words", " alike", ",", " they", " say")
RELAYS = {"frankfurt": ("dubai",), "dubai": ("frankfurt", "singapore")}
PROMPT_TOKENS = 7

Op = tuple[str, int]


@dataclass
class Story:
    """What is to happen. `scripts`: of each exchange, in the order in which they are opened."""

    scripts: list[list[Op]]
    tail: str = ""  # text behind the last token
    stream: bool = True
    pour: bool = False
    attempts: int = 3
    tenant: str = "acme"
    cores: int = 1


@dataclass
class World:
    """Plays a story, and notes what may excuse an error."""

    story: Story
    regions: MemoryUpstream = field(init=False)
    trip: Trip = field(init=False)
    faulty: set[str] = field(default_factory=set)
    final: bool = False
    drained: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.fruitful = 0  # exchanges that gave tokens before their way died
        self.failures = 0
        answers = dict.fromkeys(RTT_MS, self._answer)
        self.regions = MemoryUpstream(answers, RTT_MS, RELAYS, self.story.cores)

    @property
    def whole(self) -> str:
        return "".join(WORDS) + self.story.tail

    async def run(self) -> End | AttemptsExhausted | Refused:
        story = self.story
        self.trip = Trip(
            self.regions,
            stream=story.stream,
            attempts=story.attempts,
            tenant=story.tenant,
            hedge=False,  # a story says itself when something is late
        )
        self.trip.forwarder.way_back_s = 0.0  # nor does it wait for what it does not tell of
        try:
            return await asyncio.wait_for(self.trip.run(pour=story.pour), 20)
        except (AttemptsExhausted, Refused) as error:
            return error

    async def _answer(self, request: Request, body: bytes) -> Answer:
        number = len(self.regions.ways) - 1
        region, _ = self.regions.ways[number]
        script = self.story.scripts[number] if number < len(self.story.scripts) else []
        at = len(request.resume_tokens)
        assert request.resume_tokens == tuple(range(100, 100 + at))
        assert at <= len(WORDS)
        last: Tokens | None = None
        ended = False
        for op, count in [*script, ("rest", 0)]:
            await asyncio.sleep(0)
            if op == "tail" and at == len(WORDS):  # and then something may happen before the end
                for text in self._tail(ended):
                    yield Tokens(len(WORDS), (), text)
                ended = bool(self.story.tail)
            elif op == "accept":
                yield Accept(float(count), 0.5, region, "memory")
            elif op == "tokens" or op == "rest":
                upto = min(at + count, len(WORDS)) if op == "tokens" else len(WORDS)
                step = max(1, count)
                for begin in range(at, upto, step):
                    end = min(begin + step, upto)
                    ids = tuple(range(100 + begin, 100 + end))
                    last = Tokens(begin, ids, "".join(WORDS[begin:end]))
                    yield last
                at = max(at, upto)
            elif op == "nothing":
                yield Tokens(at, (), "")
            elif op == "later" and ended:
                self._note_failure(region, op)
                yield Tokens(at, (1,), "x")
            elif op in FRAMES:
                self._note_failure(region, op)
                for frame in FRAMES[op](at, last, self.story.tail):
                    yield frame
            elif op == "die":
                self.fruitful += last is not None
                if count:
                    self.regions.cut_way(*self.regions.ways[number])
                raise PathDown(region, "it was cut")
            elif op in FAILURES:
                self._note_failure(region, op)
                raise RegionFailure(region, FAILURES[op])
            elif op in INTERRUPTS:
                self._interrupt(op, region)
                for _ in range(8):
                    await asyncio.sleep(0)
        for text in self._tail(ended):
            yield Tokens(len(WORDS), (), text)
        yield End("stop", PROMPT_TOKENS, len(WORDS), 0.1)

    def _tail(self, ended: bool) -> tuple[str, ...]:
        tail = self.story.tail
        return () if ended or not tail else (tail[:1], tail[1:])

    def _note_failure(self, region: str, op: str) -> None:
        self.final |= op == "final"
        self.failures += 1
        self.faulty.add(region)

    def _interrupt(self, op: str, region: str) -> None:
        attempts, call_soon = self.trip.attempts, asyncio.get_running_loop().call_soon
        if op == "silence" and attempts.region == region:
            self._note_failure(region, op)
            call_soon(attempts.leave, region, Cause.SILENCE)
        elif op == "stall":
            self.faulty.add(region)
            call_soon(attempts.leave, region, Cause.STALL)
        elif op == "core":
            call_soon(attempts.leave, region, Cause.CORE)
        elif op == "hedge" and not attempts.text and attempts.waiting:
            call_soon(self._hedge)
        elif op == "move":
            self.drained.append(region)
            self._use_drains()
            call_soon(self._move, region)

    def _hedge(self) -> None:
        attempts = self.trip.attempts
        if attempts.waiting and not attempts.text and not self.trip.figures.hedged:
            self.trip.flight.stop(Cause.HEDGE)

    def _move(self, region: str) -> None:
        if self.trip.attempts.runs_in(region) and self.trip.attempts.may_move():
            self.trip.attempts.leave(region, Cause.MOVE)

    def _use_drains(self) -> None:
        spec = {"action": "drain", "reason": "x", "deadline_s": 0.0}
        overrides = [
            msgspec.structs.replace(
                parse(document("Override", name, region=name, **spec), "test"), revision=2
            )
            for name in self.drained
        ]
        self.trip.use(snapshot().changed(2, overrides))

    # The oracle

    def check(self, outcome: End | AttemptsExhausted | Refused) -> None:
        trip, story = self.trip, self.story
        ways = self.regions.ways
        most = MOST_WAYS + trip.figures.moved + self.fruitful
        assert len(ways) <= most
        numbers = [request.attempt for _, request, _ in self.regions.sent]
        assert numbers == sorted(set(numbers))
        assert numbers[-1] <= most
        if story.tenant == "eurobank":
            assert {(region, relay) for region, relay in ways} <= {("frankfurt", "")}
        told = trip.text if story.stream or story.pour else "".join(trip.attempts.text)
        if isinstance(outcome, End):
            assert told == self.whole or not story.stream
            assert "".join(trip.attempts.text) == self.whole
            assert trip.attempts.ids == list(range(100, 100 + len(WORDS)))
            assert outcome.finish_reason == "stop"
            assert (outcome.prompt_tokens, outcome.completion_tokens) == (7, len(WORDS))
            return
        assert self.whole.startswith(told) or not story.stream
        assert trip.figures.hedged or not self._is_sound(len(ways) - 1), (outcome, ways)
        assert self._is_excused(), (outcome, ways, self.faulty)

    def _is_sound(self, number: int) -> bool:
        """Whether that exchange had nothing in its way."""
        script = self.story.scripts[number] if number < len(self.story.scripts) else []
        return {op for op, _ in script} <= {"tokens", "tail", "accept", "nothing"}

    def _is_excused(self) -> bool:
        """Whether there was nowhere left to go."""
        trip = self.trip
        if self.final or len(trip.attempts.tried) >= MOST_WAYS:
            return True
        failures = len(self.faulty) if self.story.cores == 1 else self.failures
        if failures >= self.story.attempts or trip.forwarder.budget.refused:
            return True
        allowed = ("frankfurt",) if self.story.tenant == "eurobank" else tuple(RTT_MS)
        eu = self.story.tenant == "eurobank"
        relays = {} if eu else RELAYS
        left = {
            (region, relay)
            for region in allowed
            for relay in ("", *relays.get(region, ()))
            if region not in self.faulty and region not in self.drained
        }
        views = self.regions.views()
        up = {
            (region, relay)
            for region, relay in left
            if not views[region].paths
            or any(path.relay == relay and path.up for path in views[region].paths)
        }
        return not up - set(self.regions.ways)


FRAMES: dict[str, Any] = {
    "again": lambda at, last, tail: [last or Tokens(at + 1, (1,), "x")] * 2,
    "ahead": lambda at, last, tail: [Tokens(at + 1, (1,), "x")],
    "behind": lambda at, last, tail: [Tokens(at - 1 if at else 2**50, (1,), "x")],
    "nothings": lambda at, last, tail: [Tokens(at, (), "")] * 6000,
    "beyond": lambda at, last, tail: [Tokens(at, tuple(range(1000)), "x")],
    "short": lambda at, last, tail: [End("stop", 7, at + 3, 0.0)] if at else [Tokens(9, (), "")],
    "long": lambda at, last, tail: [Tokens(at, (), "x" * 100_000)],
}
FAILURES = {
    "full": Failure("overloaded", "full", 503, True),
    "engine": Failure("engine", "broken", 500, True),
    "closing": Failure("draining", "closing", 503, True),
    "tokens": Failure("invalid", "not mine", 400, False, "resume_tokens"),
    "final": Failure("overloaded", "full, do not retry", 503, False),
}

INTERRUPTS = ("silence", "stall", "core", "move", "hedge")

OPS = st.one_of(
    st.tuples(st.just("tokens"), st.integers(1, 4)),
    st.tuples(st.just("tokens"), st.sampled_from([1, 3, 20])),
    st.tuples(st.just("tail"), st.just(0)),
    st.tuples(st.just("accept"), st.integers(0, 50)),
    st.tuples(st.just("nothing"), st.just(0)),
    st.tuples(st.just("die"), st.integers(0, 1)),
    st.tuples(st.sampled_from(sorted(FRAMES)), st.just(0)),
    st.tuples(st.sampled_from(["full", "engine", "closing", "tokens"]), st.just(0)),
    st.tuples(st.just("later"), st.just(0)),
    st.tuples(st.sampled_from(INTERRUPTS), st.just(0)),
    st.tuples(st.sampled_from(INTERRUPTS), st.just(0)),
)
ALL: list[Op] = [("tokens", 20), ("tail", 0)]
STORIES = st.builds(
    Story,
    st.lists(st.lists(OPS, max_size=6), max_size=7),
    tail=st.sampled_from(["", "", " 😀"]),
    stream=st.booleans(),
    pour=st.booleans(),
    attempts=st.integers(1, 3),
    tenant=st.sampled_from(["acme", "acme", "eurobank"]),
    cores=st.sampled_from([1, 1, 3]),
)


def play(story: Story) -> World:
    async def run() -> World:
        world = World(story)
        world.check(await world.run())
        return world

    return asyncio.run(run())


@settings(max_examples=300, deadline=None)
@given(STORIES)
@example(Story([[("tokens", 2), ("again", 0)], [("tokens", 3), ("die", 1)]]))
@example(Story([[("tokens", 9), ("tokens", 1), ("tail", 0), ("die", 0)]], tail=" 😀"))
@example(
    Story([[("tokens", 20), ("tail", 0), ("die", 0)], [("tail", 0), ("engine", 0)]], tail="ab")
)
@example(
    Story([[("tokens", 20), ("tail", 0), ("die", 0)], [("ahead", 0)]], tail="ab", stream=False)
)
@example(Story([[*ALL, ("later", 0)]], tail="ab"))
@example(Story([[("tokens", 1), ("nothings", 0)]], attempts=2))
@example(Story([[("hedge", 0), ("again", 0)], [("full", 0)]], attempts=2))
@example(Story([[("accept", 0), ("hedge", 0)], [("tokens", 1), ("die", 0)]]))
@example(Story([[("tokens", 2), ("core", 0)], [("core", 0)], [("engine", 0)]], cores=3))
@example(Story([[("engine", 0)], [("engine", 0)], [("tokens", 1)]], tenant="eurobank", cores=3))
def test_each_token_once_in_order_with_one_end_or_one_error(story: Story) -> None:
    play(story)
