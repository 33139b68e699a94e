"""Regions in memory: an `Upstream` whose regions are Python functions, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from typing import TypeAlias

from topology.overlay.errors import PathDown
from topology.overlay.exchange import Take
from topology.overlay.frames import Accept, End, Request, Tokens
from topology.paths import PathView
from topology.routing import RegionView, Views

Answer: TypeAlias = AsyncGenerator[Accept | Tokens | End, None]
# Answers a request frame by frame; may raise what an exchange may raise.
Region: TypeAlias = Callable[[Request, bytes], Answer]


class MemoryExchange:
    """Runs a region's function, as far as its reader asks and one frame ahead."""

    def __init__(self, owner: MemoryUpstream, answer: Answer) -> None:
        self._owner = owner
        self._answer = answer
        self._over = False
        self._reading: asyncio.Future[Accept | Tokens | End] | None = None

    async def next(self) -> Accept | Tokens | End:
        """May be cancelled and called again: no frame is lost."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._read())
        reading = self._reading
        await asyncio.wait((reading,))
        self._reading = None
        try:
            frame = reading.result()
        except Exception:
            self._over = True
            raise
        self._over = isinstance(frame, End)
        return frame

    async def pour(self, take: Take) -> Accept | End:
        while isinstance(frame := await self.next(), Tokens):
            room = take(frame)
            if room is not None:
                await room
        return frame

    def cancel(self) -> None:
        if not self._over:
            self._over = True
            self._owner.cancelled += 1
            closing = asyncio.ensure_future(self._close())
            self._owner.closing.add(closing)
            closing.add_done_callback(self._owner.closing.discard)

    async def _read(self) -> Accept | Tokens | End:
        return await anext(self._answer)

    async def _close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        await self._answer.aclose()


class MemoryUpstream:
    """Regions by name. `sent` keeps what each was asked, `ways` how each time, `cancelled` counts
    lost interest. `relays`: those through which a region is reached besides straight. `cores`: of
    each region, as many are reached."""

    def __init__(
        self,
        regions: Mapping[str, Region],
        rtt_ms: Mapping[str, float],
        relays: Mapping[str, tuple[str, ...]] | None = None,
        cores: int = 1,
    ) -> None:
        self.regions = dict(regions)
        self.sent: list[tuple[str, Request, bytes]] = []
        self.ways: list[tuple[str, str]] = []
        self.cancelled = 0
        self.distrusted: list[tuple[str, str]] = []
        self.stuck_ids: set[str] = set()
        self.faults: list[tuple[str, str]] = []
        self.trusted: list[str] = []  # after each answer that came whole
        self.queues_ms: dict[str, float] = {}
        self.closing: set[asyncio.Future[None]] = set()
        self._relays = dict(relays or {})
        self._cores = cores
        self._down: set[tuple[str, str]] = set()
        self._rtt_ms = rtt_ms
        self._views: dict[str, RegionView] = {name: self._view(name) for name in regions}

    def views(self) -> Views:
        return self._views

    def cut(self, region: str, *, reachable: bool = False) -> None:
        """Make a region unreachable by any way, or reachable again."""
        for relay in ("", *self._relays.get(region, ())):
            self.cut_way(region, relay, reachable=reachable)

    def cut_way(self, region: str, relay: str, *, reachable: bool = False) -> None:
        """Let one way to a region die, or live again. What runs there is not told."""
        if reachable:
            self._down.discard((region, relay))
        else:
            self._down.add((region, relay))
        self._views = {**self._views, region: self._view(region)}

    def distrust(self, region: str, why: str, request_ids: Collection[str] = ()) -> None:
        self.distrusted.append((region, why))
        self.cut(region)

    def stuck(self) -> set[str]:
        return self.stuck_ids

    def fault(self, region: str, why: str, request_id: str) -> None:
        self.faults.append((region, why))

    def trust(self, region: str) -> None:
        self.trusted.append(region)

    def note_queue(self, region: str, queue_ms: float) -> None:
        self.queues_ms[region] = queue_ms

    def open(self, region: str, request: Request, body: bytes, relay: str = "") -> MemoryExchange:
        known = region in self.regions and relay in ("", *self._relays.get(region, ()))
        if not known or (region, relay) in self._down:
            raise PathDown(region, "it was cut")
        self.sent.append((region, request, body))
        self.ways.append((region, relay))
        return MemoryExchange(self, self.regions[region](request, body))

    def _view(self, region: str) -> RegionView:
        rtt_ms = self._rtt_ms.get(region)
        if region not in self._relays:
            return RegionView((region, "") not in self._down, rtt_ms, cores=self._cores)
        paths = tuple(
            PathView(relay, (region, relay) not in self._down, rtt_ms)
            for relay in ("", *self._relays[region])
        )
        return RegionView(any(path.up for path in paths), rtt_ms, paths, cores=self._cores)
