"""Looks after the answers under way: one timer for all of them, and none while there are none."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from math import ceil
from typing import Protocol

from edge_node.figures import Figures
from edge_node.forward.choice import Choice
from edge_node.forward.drains import Drains
from edge_node.forward.progress import LOOK_EVERY_S, Progress, Stream
from edge_node.forward.upstream import Upstream
from edge_node.inflight import Cause
from runtime import logs

log = logs.get("watch")

DRAINS_EVERY_S = 0.5
MOVE_IN_LOOKS = 10  # what a drain still finds there moves within so many looks,
MOVE_AT_MOST = 50  # unless that were more than this at one


class Watched(Stream, Protocol):
    """An answer that may be told to go on elsewhere."""

    @property
    def request_id(self) -> str: ...

    def runs_in(self, region: str) -> bool: ...

    def leave(self, region: str, cause: Cause) -> None:
        """Leave that region now, where that is possible; see `Cause`."""
        ...

    def may_move(self) -> bool:
        """Whether it may leave a region that is drained, as far as can be seen now."""
        ...


class Watch:
    """Of one edge worker. `add` an answer when it is begun, `discard` it when it is over."""

    def __init__(self, upstream: Upstream, choice: Choice, figures: Figures) -> None:
        self._upstream = upstream
        self._choice = choice
        self._figures = figures
        self._live: set[Watched] = set()
        self.discard = self._live.discard  # when it is over: one call of C for each request
        self._progress = Progress()
        self._drains = Drains()
        self._drains_at = 0.0
        self._batches: dict[str, int] = {}  # drained region -> answers to move at one look
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._live)

    def add(self, answer: Watched) -> None:
        self._live.add(answer)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look)

    def keep(self, regions: Iterable[str]) -> None:
        """Forget what is known of every region but these."""
        self._progress.keep(regions)

    def _look(self) -> None:
        if not self._live:
            self._timer = None
            self._progress.forget()
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(LOOK_EVERY_S, self._look)
        now = loop.time()
        self._look_at_progress(now)
        self._leave_cores(self._upstream.stuck())
        if now >= self._drains_at or self._batches:
            self._look_at_drains(now)

    def _look_at_progress(self, now: float) -> None:
        look = self._progress.look(self._live, now)
        for stall in look.stalls:
            here = [answer for answer in self._live if answer.runs_in(stall.region)]
            ids = [answer.request_id for answer in here if answer.begun]
            cores = self._upstream.distrust(stall.region, stall.why, ids)
            if cores is not None:
                self._leave_cores(cores)
                continue
            log.warning("a region stands still", region=stall.region, why=stall.why)
            self._figures.stalls += 1
            for answer in here:
                answer.leave(stall.region, Cause.STALL)
        for answer in look.silent:
            answer.leave(answer.region, Cause.SILENCE)

    def _leave_cores(self, request_ids: Collection[str]) -> None:
        """The cores that have these requests stand still, and others of their regions do not."""
        if request_ids:
            ids = set(request_ids)
            for answer in [answer for answer in self._live if answer.request_id in ids]:
                answer.leave(answer.region, Cause.CORE)

    def _look_at_drains(self, now: float) -> None:
        if now >= self._drains_at:
            self._drains_at = now + DRAINS_EVERY_S
            choice = self._choice
            overdue = self._drains.overdue(choice.snapshot, choice.directive, choice.clock.wall())
            self._batches = {region: self._batch(region) for region in sorted(overdue)}
        for region, batch in list(self._batches.items()):
            here = [answer for answer in self._live if answer.runs_in(region)]
            moving = [answer for answer in here if answer.may_move()]
            if not moving:
                del self._batches[region]  # till the next look at drains
            for answer in moving[:batch]:
                answer.leave(region, Cause.MOVE)

    def _batch(self, region: str) -> int:
        known = self._batches.get(region)
        if known is not None:
            return known
        here = sum(answer.runs_in(region) for answer in self._live)
        return min(max(1, ceil(here / MOVE_IN_LOOKS)), MOVE_AT_MOST)
