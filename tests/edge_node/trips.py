"""One request on its way, with everything that it needs."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

from edge_node.figures import Figures
from edge_node.forward.attempt import Ask
from edge_node.forward.attempts import Attempts
from edge_node.forward.choice import Choice
from edge_node.forward.forwarder import Forwarder
from edge_node.forward.upstream import Upstream
from edge_node.inflight import Cause, Flights
from runtime.clock import ManualClock
from tests.edge_node.worlds import snapshot
from topology.overlay.frames import End, Tokens
from topology.snapshot import Snapshot


class Client:
    """A client that stays for ever."""

    def client_disconnect(self) -> Any:
        return asyncio.get_running_loop().create_future()


class Trip:
    """Attempts at one request. `beside`: one whose edge it shares."""

    def __init__(
        self,
        regions: Upstream,
        *,
        stream: bool = True,
        attempts: int = 3,
        silence_s: float = 5.0,
        deadline_s: float = 10.0,
        tenant: str = "acme",
        hedge: bool = False,
        beside: Trip | None = None,
    ) -> None:
        if beside is None:
            self.clock = ManualClock()
            self.choice = Choice("london", regions.views, self.clock, Random(1))
            self.figures = Figures()
            now = asyncio.get_running_loop().time
            self.forwarder = Forwarder(regions, self.choice, self.figures, now)
            self.flights = Flights()
            self.use(snapshot())
        else:
            self.clock, self.choice = beside.clock, beside.choice
            self.figures, self.forwarder = beside.figures, beside.forwarder
            self.flights = beside.flights
        self.flight = self.flights.open(Client(), deadline_s, Cause.DEADLINE)
        ask = Ask("r1", tenant, "small", 3, stream, b"{}", attempts, silence_s, 20, hedge)
        decision = self.choice.decide(tenant, "small")
        self.attempts: Attempts = self.forwarder.begin(ask, decision, self.flight)
        self.seen: list[str] = []

    def use(self, config: Snapshot) -> None:
        self.choice.use(config)
        self.forwarder.use(config)

    async def run(self, *, pour: bool = False) -> End:
        """To its end, in this task; by `next` alone, or by `pour` from the first piece on."""
        task = asyncio.current_task()
        assert task is not None
        self.flight.task = task
        try:
            while isinstance(frame := await self.attempts.next(), Tokens):
                self.seen.append(frame.text)
                if pour:
                    return await self.attempts.pour(self.seen.append)
            return frame
        finally:
            self.attempts.close()
            self.flights.close(self.flight)

    @property
    def text(self) -> str:
        return "".join(self.seen)
