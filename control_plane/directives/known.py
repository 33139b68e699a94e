"""What the director decided, as this replica knows it: followed in the store, kept on disk.

Every replica follows it, the director's own too. While the store is away, or after a restart
without it, the last one known is served.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

from control_plane import keys
from control_plane.directives import state as states
from control_plane.directives.state import Outlook, State, directive_for
from control_plane.store.base import Entry, Listing, Store
from control_plane.store.following import follow
from runtime import logs
from runtime.atomic_file import CheckedFile
from runtime.metrics import Sample
from runtime.validation import InvalidDocument
from topology.directive import Directive

log = logs.get("directives")


class Directives:
    """Use within one event loop: `start()`, read `state` and `outlook`, `await close()`.

    `on_change` callbacks run on the loop whenever `state` became another one.
    """

    def __init__(self, store: Store, kept: Path | None, rng: Random) -> None:
        self._store = store
        self._disk = CheckedFile(kept, "directives") if kept is not None else None
        self._rng = rng
        self._listeners: list[Callable[[], None]] = []
        self._task: asyncio.Task[None] | None = None
        self.state = State()
        self.revision = 0  # at which `state` was written; 0: none, or from disk
        self.outlook = Outlook()
        self.followed = False  # what is held is what the store holds, as far as anybody can say

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    @property
    def disk_failures(self) -> int:
        """How many writes to disk failed."""
        return self._disk.failures if self._disk is not None else 0

    def directive_for(self, node: str) -> Directive:
        """What `node` is to be told now."""
        return directive_for(self.state, node)

    def start(self) -> None:
        data = self._disk.load() if self._disk is not None else None
        if data is not None:
            try:
                self.state = states.decode(data, "the directives on disk")
            except InvalidDocument as error:
                log.error("the directives on disk are ignored", reason=str(error))
        self._task = asyncio.create_task(self._follow(), name="directives")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._disk is not None:
            await self._disk.close()

    def samples(self) -> Iterable[Sample]:
        """What was decided, as every replica knows it, for Prometheus."""
        name = "tradewind_director_"
        yield Sample(name + "followed", "Whether decisions are followed.", self.followed)
        yield Sample(name + "number", "Of the newest directive.", self.state.number)
        yield Sample(name + "notes", "What could not be done.", len(self.state.notes))
        for region, verdict in self.state.verdicts.items():
            yield Sample(name + "region_up", "The verdict.", verdict.up, {"region": region})
        for region, drain in self.state.drains.items():
            labels = {"region": region}
            yield Sample(name + "drain_percent", "Of a paced override.", drain.percent, labels)
            yield Sample(name + "drain_waits", "It is paused.", bool(drain.paused), labels)
        for region, load in self.outlook.utilisation.items():
            labels = {"region": region}
            yield Sample(name + "utilisation", "As its cores report it.", load, labels)

    async def _follow(self) -> None:
        await follow(
            self._store,
            keys.DIRECTOR,
            self._relist,
            lambda change: self._take(change.puts),
            self._rng,
            self._lost,
        )

    def _relist(self, listing: Listing) -> None:
        self._take(listing.entries)
        self.followed = True

    def _lost(self) -> None:
        self.followed = False

    def _take(self, entries: tuple[Entry, ...]) -> None:
        for entry in entries:
            try:
                if entry.key == keys.DIRECTOR_STATE:
                    self._adopt(states.decode(entry.value, entry.key), entry)
                elif entry.key == keys.OUTLOOK:
                    self.outlook = states.decode_outlook(entry.value, entry.key)
            except InvalidDocument as error:
                log.error("what the director wrote is ignored", reason=str(error))

    def _adopt(self, state: State, entry: Entry) -> None:
        self.state, self.revision = state, entry.revision
        if self._disk is not None:
            self._disk.keep(entry.value)
        for listener in self._listeners:
            listener()
