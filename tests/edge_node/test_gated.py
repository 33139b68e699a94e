"""Every exchange is counted once when it begins and once when it ends, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_node.admission.gate import Gate, Hindrance
from edge_node.admission.gated import GatedUpstream
from edge_node.admission.intake import Intake, Outcome
from edge_node.errors import AttemptsExhausted
from edge_node.forward.memory import Answer, MemoryUpstream, Region
from tests.edge_node.trips import Trip
from tests.edge_node.worlds import (
    RTT_MS,
    TEXT,
    answering,
    dying,
    refusing,
    silent,
    upstream,
)
from topology.cursor import ALL_ADMITTED, TIERS, Tier
from topology.overlay.errors import OverlayProtocolError, PathDown, RegionFailure
from topology.overlay.frames import Accept, End, Failure, Request, Tokens
from topology.policy import OverloadPolicy


class Book(Intake):
    """Keeps what it is told."""

    __slots__ = ("begun", "over", "used")

    def __init__(self) -> None:
        super().__init__(OverloadPolicy(), Random(1), lambda: None)
        self.begun: list[tuple[Tier, float]] = []
        self.over: list[Outcome] = []
        self.used: list[float] = []

    def sent(self, tier: Tier, cost: float, now: float) -> None:
        super().sent(tier, cost, now)
        self.begun.append((tier, cost))

    def ended(self, tier: Tier, cost: float, used: float, outcome: Outcome, now: float) -> None:
        super().ended(tier, cost, used, outcome, now)
        self.over.append(outcome)
        self.used.append(used)
        assert self.in_flight >= 0 and all(lane.own >= 0 for lane in self.lanes.values())


class Books(Gate):
    """A gate that keeps books, by region."""

    def __init__(self) -> None:
        super().__init__()
        self.books: dict[str, Book] = {}

    def intake(self, region: str) -> Book:
        return self.books.setdefault(region, Book())

    def check(self) -> None:
        """Everything is over."""
        for book in self.books.values():
            assert len(book.begun) == len(book.over)
            assert book.in_flight == 0
            assert all(book.lanes[tier].own == 0 for tier in TIERS)


def booked(trip: Trip, regions: MemoryUpstream) -> Books:
    """Let this trip's edge keep books from now on."""
    books = Books()
    trip.forwarder.gate = books
    trip.forwarder.upstream = GatedUpstream(regions, books, trip.forwarder.now)
    return books


async def outcomes(trip: Trip, regions: MemoryUpstream) -> dict[str, list[Outcome]]:
    books = booked(trip, regions)
    with contextlib.suppress(AttemptsExhausted, asyncio.CancelledError):
        await trip.run()
    books.check()
    return {region: book.over for region, book in books.books.items() if book.over}


OVERLOADED = refusing("frankfurt", "overloaded", 503, retryable=True)


@pytest.mark.parametrize(
    ("frankfurt", "found"),
    [
        (answering("frankfurt"), {"frankfurt": ["ok"]}),
        (OVERLOADED, {"frankfurt": ["refused"], "dubai": ["ok"]}),
        (
            refusing("frankfurt", "internal", 500, retryable=True),
            {"frankfurt": ["failed"], "dubai": ["ok"]},
        ),
        (refusing("frankfurt", "invalid", 400, retryable=False), {"frankfurt": ["faulty"]}),
        (dying("frankfurt", 0), {"frankfurt": ["failed"], "dubai": ["ok"]}),
    ],
)
async def test_each_end_has_its_name(frankfurt: Region, found: dict[str, list[Outcome]]) -> None:
    regions = upstream(frankfurt=frankfurt)
    assert await outcomes(Trip(regions), regions) == found


async def test_the_gate_is_not_asked_again_about_a_region_that_has_refused() -> None:
    asked: list[str] = []

    class Asked(Books):
        def judge(self, region: str, *of: Any, **how: Any) -> Hindrance:
            asked.append(region)
            return super().judge(region, *of, **how)

    regions = upstream(frankfurt=OVERLOADED)
    trip = Trip(regions)
    books = Asked()
    trip.forwarder.gate = books
    trip.forwarder.upstream = GatedUpstream(regions, books, trip.forwarder.now)
    await trip.run()
    assert books.books["frankfurt"].over == ["refused"]
    assert asked and "frankfurt" not in asked  # else each would count there as two


async def test_an_answer_that_goes_on_elsewhere_is_two() -> None:
    regions = upstream()
    regions.regions["frankfurt"] = dying("frankfurt", 4, cut=regions)
    trip = Trip(regions)
    assert await outcomes(trip, regions) == {"frankfurt": ["failed"], "dubai": ["ok"]}
    assert trip.text == TEXT


async def test_silence_is_given_up_and_asked_elsewhere() -> None:
    regions = upstream(frankfurt=silent("frankfurt"))
    ended = await outcomes(Trip(regions, silence_s=0.1), regions)
    assert ended == {"frankfurt": ["cancelled"], "dubai": ["ok"]}


async def test_a_hedge_is_counted_and_whoever_loses_is_given_up() -> None:
    regions = upstream(frankfurt=silent("frankfurt"))
    trip = Trip(regions, hedge=True)
    for _ in range(64):
        trip.forwarder.first_tokens.add("frankfurt", 0.05)
    assert await outcomes(trip, regions) == {"frankfurt": ["cancelled"], "dubai": ["ok"]}


async def test_of_a_hedge_that_fails_nothing_is_left() -> None:
    async def fails_later(request: Request, body: bytes) -> Answer:
        await asyncio.sleep(0.3)
        async for frame in OVERLOADED(request, body):
            yield frame

    regions = upstream(frankfurt=answering("frankfurt", first_s=0.6), dubai=fails_later)
    trip = Trip(regions, hedge=True)
    for _ in range(64):
        trip.forwarder.first_tokens.add("frankfurt", 0.05)
    assert await outcomes(trip, regions) == {"frankfurt": ["ok"], "dubai": ["refused"]}


async def test_a_way_that_is_down_has_not_begun() -> None:
    gate = Books()
    regions = upstream()
    regions.cut("frankfurt")
    gated = GatedUpstream(regions, gate, asyncio.get_running_loop().time)
    with pytest.raises(PathDown):
        gated.open("frankfurt", _REQUEST, b"{}")
    gate.check()
    assert "frankfurt" not in gate.books


async def test_the_deadline_ends_it() -> None:
    regions = upstream(frankfurt=silent("frankfurt"))
    ended = await outcomes(Trip(regions, deadline_s=0.1), regions)
    assert ended == {"frankfurt": ["cancelled"]}


async def test_a_client_that_goes_in_the_midst_ends_it() -> None:
    regions = upstream(frankfurt=answering("frankfurt", pause_s=0.02))
    trip = Trip(regions)
    books = booked(trip, regions)
    task = asyncio.ensure_future(trip.run(pour=True))
    while len(trip.seen) < 3:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    books.check()
    book = books.books["frankfurt"]
    assert book.over == ["cancelled"]
    assert book.used == [book.begun[0][1]]  # not known, so as thought


async def test_many_at_once_all_end() -> None:
    """Some die, some are refused, some are given up; all share one edge."""

    async def moody(request: Request, body: bytes) -> Answer:
        kind = draws.random()
        region = answering("frankfurt", pause_s=0.001)
        if kind < 0.3:
            region = dying("frankfurt", 3)
        elif kind < 0.6:
            region = OVERLOADED
        elif kind < 0.7:
            region = silent("frankfurt")
        async for frame in region(request, body):
            yield frame

    draws = Random(5)
    regions = MemoryUpstream(dict.fromkeys(RTT_MS, moody), RTT_MS)
    first = Trip(regions, hedge=True, silence_s=0.2)
    books = booked(first, regions)
    trips = [Trip(regions, hedge=True, silence_s=0.2, beside=first) for _ in range(60)]
    await asyncio.gather(*(trip.run() for trip in trips), return_exceptions=True)
    first.attempts.close()
    books.check()
    assert sum(len(book.over) for book in books.books.values()) == len(regions.sent) >= 60
    assert any(trip.text == TEXT for trip in trips)


# One exchange, in all that may be done with it

_REQUEST = Request("r1", "acme", "small", 1000, 3, 1, True)
_FAILURES = (
    PathDown("r", "cut"),
    OverlayProtocolError("nonsense"),
    RegionFailure("r", Failure("overloaded", "full", 503, True, level=200, queue_ms=400.0)),
    RegionFailure("r", Failure("invalid", "no", 400, False)),
)


@dataclass
class Scripted:
    """An exchange whose frames are written down. None: nothing comes."""

    frames: list[Accept | Tokens | End | Exception | None]
    cancelled: int = 0
    shown: list[str] = field(default_factory=list)

    async def next(self) -> Accept | Tokens | End:
        if not self.frames or self.frames[0] is None:
            await asyncio.sleep(3600)
        frame = self.frames.pop(0)
        if isinstance(frame, Exception):
            raise frame
        assert frame is not None
        return frame

    async def pour(self, take: object) -> Accept | End:
        while isinstance(frame := await self.next(), Tokens):
            self.shown.append(frame.text)
        return frame

    def cancel(self) -> None:
        self.cancelled += 1


class One(MemoryUpstream):
    """Gives out one exchange."""

    def __init__(self, exchange: Scripted) -> None:
        super().__init__({}, {})
        self.exchange = exchange

    def open(self, region: str, request: Request, body: bytes, relay: str = "") -> Scripted:  # type: ignore[override]
        return self.exchange


FRAME = st.sampled_from(
    [
        Accept(30.0, 0.5, "r", "sim", 300),
        Tokens(0, (1,), "a"),
        End("stop", 10, 20, 0.5, 250),
        End("stop", 10, 20, 0.5, cached=True),
        None,
        *_FAILURES,
    ]
)


@given(st.lists(FRAME, max_size=8), st.lists(st.sampled_from(["next", "pour", "cancel"])))
def test_it_ends_once_whatever_is_done_with_it(
    frames: list[Accept | Tokens | End | Exception | None], steps: list[str]
) -> None:
    async def run() -> None:
        gate, exchange = Books(), Scripted(list(frames))
        now = asyncio.get_running_loop().time
        opened = GatedUpstream(One(exchange), gate, now).open("r", _REQUEST, b"x" * 400)
        book = gate.books["r"]
        assert book.in_flight == book.lanes["standard"].own == 1
        for step in steps:
            if step == "cancel":
                opened.cancel()
                continue
            with contextlib.suppress(
                asyncio.CancelledError, PathDown, OverlayProtocolError, RegionFailure
            ):
                reading = opened.next() if step == "next" else opened.pour(lambda _: None)
                task = asyncio.ensure_future(reading)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                task.cancel()
                await task
        opened.cancel()
        gate.check()
        assert len(book.over) == 1

    asyncio.run(run())


async def test_what_the_region_says_is_told() -> None:
    gate, now = Books(), asyncio.get_running_loop().time
    frames: list[Accept | Tokens | End | Exception | None] = [
        Accept(300.0, 1.5, "r", "sim", 200),
        End("stop", 10, 20, 0.5, 250),
    ]
    opened = GatedUpstream(One(Scripted(frames)), gate, now).open("r", _REQUEST, b"x" * 400)
    book = gate.books["r"]
    await opened.next()
    assert (book.level(now()), book.queue_s(now())) == (200, 0.3)
    await opened.next()
    assert book.level(now()) == 250
    assert book.used == [30.0]
    assert gate.estimate("small", 400) == 100 + 20
    failing = Scripted([_FAILURES[2]])
    opened = GatedUpstream(One(failing), gate, now).open("r", _REQUEST, b"")
    with pytest.raises(RegionFailure):
        await opened.next()
    assert book.level(now()) == 200 and book.queue_s(now()) > 0.3
    assert book.over == ["ok", "refused"]
    assert book.level(now()) < ALL_ADMITTED
