"""Regions in memory: an `Upstream` whose regions are Python functions, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TypeAlias

from topology.overlay.errors import PathDown
from topology.overlay.frames import Accept, End, Request, Tokens
from topology.routing import RegionView, Views

Answer: TypeAlias = AsyncGenerator[Accept | Tokens | End, None]
# Answers a request frame by frame; may raise what an exchange may raise.
Region: TypeAlias = Callable[[Request, bytes], Answer]


class MemoryExchange:
    """Runs a region's function as far as its reader asks."""

    def __init__(self, owner: MemoryUpstream, answer: Answer) -> None:
        self._owner = owner
        self._answer = answer
        self._over = False

    async def next(self) -> Accept | Tokens | End:
        try:
            frame = await anext(self._answer)
        except Exception:
            self._over = True
            raise
        self._over = isinstance(frame, End)
        return frame

    def cancel(self) -> None:
        if not self._over:
            self._over = True
            self._owner.cancelled += 1
            closing = asyncio.ensure_future(self._answer.aclose())
            self._owner.closing.add(closing)
            closing.add_done_callback(self._owner.closing.discard)


class MemoryUpstream:
    """Regions by name. `sent` keeps what each was asked, `cancelled` counts lost interest."""

    def __init__(self, regions: Mapping[str, Region], rtt_ms: Mapping[str, float]) -> None:
        self.regions = dict(regions)
        self.sent: list[tuple[str, Request, bytes]] = []
        self.cancelled = 0
        self.distrusted: list[tuple[str, str]] = []
        self.closing: set[asyncio.Future[None]] = set()
        self._views: dict[str, RegionView] = {
            name: RegionView(reachable=True, rtt_ms=rtt_ms.get(name)) for name in regions
        }

    def views(self) -> Views:
        return self._views

    def cut(self, region: str, *, reachable: bool = False) -> None:
        """Make a region unreachable, or reachable again."""
        view = RegionView(reachable, self._views[region].rtt_ms)
        self._views = {**self._views, region: view}

    def distrust(self, region: str, why: str) -> None:
        self.distrusted.append((region, why))
        self.cut(region)

    def open(self, region: str, request: Request, body: bytes, relay: str = "") -> MemoryExchange:
        view = self._views.get(region)
        if view is None or not view.reachable:
            raise PathDown(region, "it was cut")
        self.sent.append((region, request, body))
        return MemoryExchange(self, self.regions[region](request, body))
