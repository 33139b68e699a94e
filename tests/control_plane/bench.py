"""A store, a catalog that follows it, and changes, without a socket."""

from __future__ import annotations

from random import Random
from typing import Any

from control_plane.catalog import Catalog
from control_plane.changes import history
from control_plane.changes.apply import Changes
from control_plane.changes.plan import Wanted
from control_plane.directives.state import Outlook, State
from runtime.clock import ManualClock
from topology.resources import Key, Resource

NOW_S = 1_700_000_000.0


class Bench:
    """Use as an async context manager.

    `outlook` and `state` are what the director is taken to have seen and decided.
    """

    def __init__(self, store: Any, keep: int = history.KEEP) -> None:
        self.store = store
        self.clock = ManualClock(wall=NOW_S)
        self.catalog = Catalog(store, None, self.clock, Random(1))
        self.outlook = Outlook()
        self.state = State()
        self.changes = Changes(
            store,
            self.catalog,
            self.clock,
            "cp-1",
            outlook=lambda: self.outlook,
            state=lambda: self.state,
            keep=keep,
        )

    async def __aenter__(self) -> Bench:
        self.catalog.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.catalog.close()

    async def apply(self, *puts: Resource, author: str = "operator/alice", **wanted: Any) -> int:
        done = await self.changes.apply(Wanted(puts=puts, **wanted), author)
        return done.revision

    async def held(self) -> dict[Key, Resource]:
        return {resource.key: resource for resource in await self.changes.resources()}

    async def specs(self) -> dict[Key, object]:
        return {key: resource.spec for key, resource in (await self.held()).items()}
