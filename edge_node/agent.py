"""Keeps an edge worker in step with the control plane, and alive without it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Iterable
from random import Random

from msgspec import Struct

from edge_node.settings import EdgeSettings
from runtime import logs
from runtime.clock import Clock
from runtime.identity import Identity
from runtime.metrics import Sample
from topology.directive import Directive
from topology.quota import SETTLE_S
from topology.snapshot import Snapshot
from topology.wire.ads_client import AdsClient

log = logs.get("agent")

WATCH_EVERY_S = 1.0


class Standing(Struct, frozen=True):
    """Where a worker stands with the control plane; times by the monotonic clock."""

    confirmed_at: float  # when a current replica last stood behind what is held; -inf: never
    now: float
    settled: bool  # one has for a while, so that whatever is newer has arrived


class Agent:
    """The xDS client of one worker. `start` calls `on_snapshot` with what is on disk, if any."""

    def __init__(
        self,
        settings: EdgeSettings,
        worker: int,
        identity: Identity,
        on_snapshot: Callable[[Snapshot], None],
        clock: Clock,
        rng: Random,
        on_directive: Callable[[Directive], None],
        on_standing: Callable[[Standing], None],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._on_standing = on_standing
        self._current_since: float | None = None
        self._heard: tuple[object, ...] = ()
        self._task: asyncio.Task[None] | None = None
        self._worker = worker
        self._ads = AdsClient(
            settings.node_id(worker),
            settings.control_plane,
            identity,
            settings.last_good(worker),
            on_snapshot,
            clock,
            rng,
            settings.discovery,
            on_directive,
        )

    def start(self) -> None:
        self._inherit()
        self._ads.start()
        self._task = asyncio.create_task(self._watch_forever(), name="agent")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._ads.close()

    def samples(self) -> Iterable[Sample]:
        status = self._ads.status
        yield Sample(
            "tradewind_edge_control_plane_connected",
            "Whether this edge hears the control plane.",
            status.connected,
        )
        yield Sample(
            "tradewind_edge_control_plane_stale",
            "Whether its configuration may be out of date.",
            status.stale,
        )
        yield Sample(
            "tradewind_edge_disk_failures_total",
            "Writes of its configuration to disk that failed.",
            self._ads.disk_failures,
        )

    def standing(self) -> Standing:
        """Where this worker stands with the control plane now."""
        status, now = self._ads.status, self._clock.now()
        heard = (status.endpoint, status.replica, status.since_s)
        if not status.connected or status.stale:
            self._current_since = None
        elif self._current_since is None or heard != self._heard:
            self._current_since = now
        self._heard = heard
        settled = self._current_since is not None and now - self._current_since >= SETTLE_S
        return Standing(status.confirmed_at, now, settled)

    async def _watch_forever(self) -> None:
        while True:
            try:
                self._on_standing(self.standing())
            except Exception:  # the task's outermost edge: quotas and staleness hang on the next
                log.exception("looking at the control plane's standing failed")
            await asyncio.sleep(WATCH_EVERY_S)

    def _inherit(self) -> None:
        """A worker that never ran starts from what the first one knows."""
        mine, first = (self._settings.last_good(n) for n in (self._worker, 0))
        if not mine.exists():
            with contextlib.suppress(OSError):  # there is none: wait for the control plane
                shutil.copy2(first, mine)  # with its time: until when it was vouched for
