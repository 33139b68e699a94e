"""Two exchanges for one answer: the one that gives its first token first is taken, whole.

Made for few requests: it costs two tasks while it runs, and none before or after.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from edge_node.forward.upstream import Exchange
from topology.overlay.errors import OverlayProtocolError, PathDown, RegionFailure
from topology.overlay.exchange import Take
from topology.overlay.frames import Accept, End, Tokens
from topology.routing import Candidate

LineError = PathDown | RegionFailure | OverlayProtocolError


class Line:
    """One of the exchanges. `opened` is when, by the event loop's clock."""

    __slots__ = ("candidate", "exchange", "hedge", "opened", "reading")

    def __init__(
        self, candidate: Candidate, exchange: Exchange, opened: float, *, hedge: bool = False
    ) -> None:
        self.candidate = candidate
        self.exchange = exchange
        self.opened = opened
        self.hedge = hedge
        self.reading: asyncio.Future[Accept | Tokens | End] | None = None

    def give_up(self) -> None:
        reading, self.reading = self.reading, None
        if reading is not None and not reading.cancel() and not reading.cancelled():
            reading.exception()  # whatever it was, nobody waits for it
        self.exchange.cancel()


class Judge(Protocol):
    """Who is told how the race goes."""

    def line_accepted(self, line: Line, frame: Accept) -> None: ...

    def line_failed(self, line: Line, error: LineError) -> None:
        """It is out, and another one goes on."""
        ...

    def line_won(self, line: Line, lost: list[Line]) -> None:
        """It is the only one from now on; its exchange is to be read directly."""
        ...


class Race:
    """An `Exchange` made of several."""

    def __init__(self, judge: Judge, lines: list[Line]) -> None:
        self._judge = judge
        self.lines = lines  # those that are still in it

    async def next(self) -> Tokens | End:
        """The first piece of the answer that any of them has. Raises as the last one left does.

        May be cancelled and called again.
        """
        while True:
            for line in self.lines:
                if line.reading is None:
                    line.reading = asyncio.ensure_future(line.exchange.next())
            waiting: list[Any] = [line.reading for line in self.lines]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for line in list(self.lines):
                frame = self._read(line)
                if frame is not None:
                    return frame

    async def pour(self, take: Take) -> Accept | End:
        while isinstance(frame := await self.next(), Tokens):
            room = take(frame)
            if room is not None:
                await room
        return frame

    def drop(self, region: str) -> list[Line]:
        """Take those out that run there, as long as one is left; they are given up."""
        dropped = [line for line in self.lines if line.candidate.region == region]
        if len(dropped) == len(self.lines):
            return []
        for line in dropped:
            self.lines.remove(line)
            line.give_up()
        return dropped

    def cancel(self) -> None:
        for line in self.lines:
            line.give_up()

    def _read(self, line: Line) -> Tokens | End | None:
        reading = line.reading
        if reading is None or not reading.done():
            return None
        line.reading = None
        try:
            frame = reading.result()
        except (PathDown, RegionFailure, OverlayProtocolError) as error:
            if len(self.lines) == 1:
                raise
            self.lines.remove(line)
            line.give_up()
            self._judge.line_failed(line, error)
            return None
        if type(frame) is Accept:
            self._judge.line_accepted(line, frame)
            return None
        lost = [other for other in self.lines if other is not line]
        self.lines = [line]
        for other in lost:
            other.give_up()
        self._judge.line_won(line, lost)
        assert not isinstance(frame, Accept)
        return frame
