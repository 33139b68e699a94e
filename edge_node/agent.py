"""Keeps an edge worker in step with the control plane, and alive without it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable
from random import Random

from edge_node.settings import EdgeSettings
from runtime.clock import Clock
from runtime.identity import Identity
from runtime.metrics import Sample
from topology.snapshot import Snapshot
from topology.wire.ads_client import AdsClient


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
    ) -> None:
        self._settings = settings
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
        )

    def start(self) -> None:
        self._inherit()
        self._ads.start()

    async def close(self) -> None:
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

    def _inherit(self) -> None:
        """A worker that never ran starts from what the first one knows."""
        mine, first = (self._settings.last_good(n) for n in (self._worker, 0))
        if not mine.exists():
            with contextlib.suppress(OSError):  # there is none: wait for the control plane
                shutil.copyfile(first, mine)
