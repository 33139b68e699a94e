"""What happens in the lab: all is well, Frankfurt is drained, the director is killed, then all of
etcd and Singapore.

Clients never stop asking. Each phase lasts until every city has had an answer to something it
asked after the phase began, so that a slow machine tells the same story, only more slowly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from lab.clients import Client, keep_asking
from lab.errors import LabError
from lab.report import Outcome

# `draining` lasts as long as the command, which returns once every node has acknowledged.
STEADY, DRAINING, DRAINED_NOW, KILLED_NOW = "steady", "draining", "drained", "killed"
DEPOSED = "deposed"  # the replica that directs is killed, until another has taken over
MIN_PHASE_S = 5.0
MAX_PHASE_S = 60.0
DRAINED = "frankfurt"
KILLED = "singapore"

Act = Callable[[], Awaitable[None]]


class Audience(Protocol):
    """Who watches: the live view, or a log when there is no terminal."""

    def phase(self, name: str, text: str) -> None: ...

    def outcome(self, outcome: Outcome) -> None: ...


class Story:
    """Runs the phases over `clients`; `drain`, `depose` and `kill` do the deeds."""

    def __init__(
        self,
        clients: list[Client],
        drain: Act,
        depose: Act,
        kill: Act,
        audience: Audience,
        now: Callable[[], float],
    ) -> None:
        self._clients = clients
        self._drain = drain
        self._depose = depose
        self._kill = kill
        self._audience = audience
        self._now = now
        self._phase = STEADY
        self.outcomes: list[Outcome] = []
        self.began_s: dict[str, float] = {}

    async def run(self) -> None:
        stop = asyncio.Event()
        asking = [
            asyncio.create_task(keep_asking(c, lambda: self._phase, stop, self._record))
            for c in self._clients
        ]
        try:
            self._enter(STEADY, "every city asks; the nearest region answers")
            await self._until_told(asking)
            self._enter(DRAINING, f"`tradewind region drain {DRAINED}` is running")
            await self._drain()
            self._enter(DRAINED_NOW, f"{DRAINED} is drained: every node has acknowledged")
            await self._until_told(asking)
            self._enter(DEPOSED, "the replica that directs is killed with SIGKILL")
            await self._depose()
            await self._until_told(asking)
            self._enter(KILLED_NOW, f"all of etcd and {KILLED}'s core are killed with SIGKILL")
            await self._kill()
            await self._until_told(asking)
        finally:
            stop.set()
            done, late = await asyncio.wait(asking, timeout=MAX_PHASE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*(client.close() for client in self._clients))
        for task in done:
            task.result()

    def _enter(self, phase: str, text: str) -> None:
        self._phase = phase
        self.began_s[phase] = self._now()
        self._audience.phase(phase, text)

    async def _until_told(self, asking: list[asyncio.Task[None]]) -> None:
        """Until every city has had an answer to something it asked in this phase."""
        end = self._now() + MAX_PHASE_S
        while not self._told(self._phase):
            for task in asking:
                if task.done():
                    task.result()  # a client that broke is the lab's mistake: raise it
            if self._now() > end:
                raise LabError(
                    f"phase {self._phase!r}: not every city had an answer within "
                    f"{MAX_PHASE_S:.0f} s"
                )
            await asyncio.sleep(0.1)

    def _told(self, name: str) -> bool:
        if self._now() - self.began_s[name] < MIN_PHASE_S:
            return False
        answered = {o.city for o in self.outcomes if o.phase == name}
        return len(answered) == len(self._clients)

    def _record(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self._audience.outcome(outcome)
