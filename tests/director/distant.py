"""A store at the other end of a bad line: late, cut off, with answers that get lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import TypeVar

from control_plane.store.base import (
    Change,
    Entry,
    Guard,
    Listing,
    Operation,
    Relisted,
    Store,
    StoreStatus,
    Watch,
)
from control_plane.store.errors import StoreUnavailable

T = TypeVar("T")


class DistantStore:
    """`store` as one replica sees it. While `cut`, calls fail slowly; while `frozen`, nothing
    comes back, as in a process that was stopped; `lossy` is how often an answer is lost."""

    def __init__(self, store: Store, rng: Random) -> None:
        self._store = store
        self._rng = rng
        self.typical_s = 0.005
        self.lossy = 0.0
        self.cut = False
        self._thawed = asyncio.Event()
        self._thawed.set()

    def freeze(self) -> None:
        self._thawed.clear()

    def thaw(self) -> None:
        self._thawed.set()

    @property
    def status(self) -> StoreStatus:
        return self._store.status

    async def get(self, key: str) -> Entry | None:
        return await self._call(lambda: self._store.get(key))

    async def list(self, prefix: str) -> Listing:
        return await self._call(lambda: self._store.list(prefix))

    def watch(self, prefix: str, after: int) -> Watch:
        return _DistantWatch(self, self._store.watch(prefix, after))

    async def transact(self, guards: Sequence[Guard], operations: Sequence[Operation]) -> int:
        return await self._call(lambda: self._store.transact(guards, operations))

    async def grant(self, ttl_s: float) -> int:
        return await self._call(lambda: self._store.grant(ttl_s))

    async def keep_alive(self, lease: int) -> float:
        return await self._call(lambda: self._store.keep_alive(lease))

    async def revoke(self, lease: int) -> None:
        await self._call(lambda: self._store.revoke(lease))

    async def close(self) -> None:
        """The store itself belongs to the test."""

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        await self.travel()
        if self.cut:
            await asyncio.sleep(0.3)
            raise StoreUnavailable("cut off")
        # What was sent arrives, whether or not the caller waits for the answer.
        answer = asyncio.ensure_future(call())
        try:
            result = await asyncio.shield(answer)
        except BaseException:
            if not answer.done():
                answer.add_done_callback(lambda task: task.cancelled() or task.exception())
            raise
        finally:
            await self.travel()
        if self.cut or self._rng.random() < self.lossy:
            raise StoreUnavailable("the answer was lost", ambiguous=True)
        return result

    async def travel(self) -> None:
        await asyncio.sleep(self.typical_s * self._rng.expovariate(1.0))
        await self._thawed.wait()


class _DistantWatch:
    def __init__(self, distant: DistantStore, watch: Watch) -> None:
        self._distant = distant
        self._watch = watch

    def __aiter__(self) -> _DistantWatch:
        return self

    async def __anext__(self) -> Change | Relisted:
        item = await anext(self._watch)
        await self._distant.travel()
        while self._distant.cut:
            await asyncio.sleep(0.05)
        return item

    async def aclose(self) -> None:
        await self._watch.aclose()
