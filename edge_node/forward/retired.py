"""Tunnels that were let go: each stays open until its exchanges have ended."""

from __future__ import annotations

import asyncio

from topology.overlay.tunnel import Tunnel

CHECK_S = 0.5
AT_MOST_S = 120.0  # then a tunnel is closed with exchanges still in it
MOST = 256  # of them at once: beyond it the oldest are closed


class Retired:
    """Those of one edge worker. Needs a running event loop."""

    def __init__(self) -> None:
        self._held: list[tuple[Tunnel, float]] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.Handle | None = None

    def __len__(self) -> int:
        return len(self._held)

    def take(self, tunnel: Tunnel | None) -> None:
        if tunnel is None:
            return
        loop = asyncio.get_running_loop()
        self._held.append((tunnel, loop.time() + AT_MOST_S))
        if len(self._held) > MOST:
            self._look()
            while len(self._held) > MOST:
                self._close(self._held.pop(0)[0])
        elif self._sweep is None:
            self._sweep = loop.call_soon(self._look)

    async def close(self) -> None:
        """Close all of them now."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for tunnel, _ in self._held:
            self._close(tunnel)
        self._held.clear()
        await asyncio.gather(*self._closing)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now, kept = loop.time(), []
        if self._sweep is not None:
            self._sweep.cancel()
        for tunnel, until in self._held:
            if tunnel.status.open_exchanges and now < until:
                kept.append((tunnel, until))
            else:
                self._close(tunnel)
        self._held = kept
        self._sweep = loop.call_later(CHECK_S, self._look) if kept else None

    def _close(self, tunnel: Tunnel) -> None:
        task = asyncio.get_running_loop().create_task(tunnel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
