"""Which core of a region is asked, where it is reached at several, and what becomes of that.

Each exchange is opened at the one of two random cores that has fewer open (the power of two
choices); a core that returns from failing counts for more than it has; one that is left alone or
dead is left out, unless all are. A request that comes again is not sent to a core that failed it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from random import Random

from edge_node.forward.blame import fault_of
from edge_node.forward.cores import Core, Cores
from edge_node.forward.outliers import Outliers
from edge_node.forward.path import Connect, LetGo
from edge_node.forward.upstream import Exchange
from runtime import logs
from topology.overlay.errors import OverlayProtocolError, PathDown, RegionFailure
from topology.overlay.exchange import Take
from topology.overlay.frames import Accept, End, Request, Tokens
from topology.policy import OutlierPolicy

log = logs.get("replicas")

STALL_S = 1.0  # a core that says for so long that it gets nowhere loses what it has


class Replicas(Cores):
    """Of one region, for one edge worker. `now` is the clock of `outliers`."""

    def __init__(
        self,
        region: str,
        connect: Connect,
        let_go: LetGo,
        on_change: Callable[[Replicas], None],
        rng: Random,
        now: Callable[[], float],
    ) -> None:
        super().__init__(region, connect, let_go, lambda: on_change(self), now)
        self.outliers = Outliers(rng)
        self._draw = rng.random
        self._usable: list[Core] = []  # those that live and are not left alone
        self._returning = False  # one of them is
        self._open: dict[str, Core] = {}  # request id -> where it is

    def follow(self, policy: OutlierPolicy) -> None:
        """Leave cores alone by this policy."""
        self.outliers.use(policy)
        self._refresh()

    # Requests, where there are several cores

    def open(self, request: Request, body: bytes) -> Exchange:
        """Send a request to one of them. Raises `PathDown`."""
        core = self._pick(request)
        try:
            exchange = core.tunnel.open(request, body)
        except PathDown:
            others = [other for other in self._live if other is not core]
            if not others:
                raise
            core = others[0]
            exchange = core.tunnel.open(request, body)
        if self.outliers and self.outliers.asked(core.address, self._now()):
            self._refresh()
        self._open[request.request_id] = core
        return _Replica(self, core, request.request_id, exchange)

    def _pick(self, request: Request) -> Core:
        usable = self._usable
        if request.attempt > 1:
            usable = self._untried(request.request_id)
        count = len(usable)
        if count < 2:
            return usable[0] if usable else self._leading()
        draw = self._draw
        at, other = int(draw() * count), int(draw() * (count - 1))
        one, two = usable[at], usable[other + (other >= at)]
        if self._returning:
            counts = (one.tunnel.open_exchanges + draw()) / one.part
            return one if counts <= (two.tunnel.open_exchanges + draw()) / two.part else two
        return one if one.tunnel.open_exchanges <= two.tunnel.open_exchanges else two

    def _untried(self, request_id: str) -> list[Core]:
        """Those that have not failed it; one that is left alone goes before one that has."""
        for cores in (self._usable, self._live):
            left = [core for core in cores if request_id not in core.failed]
            if left:
                return left
        return self._usable

    def _leading(self) -> Core:
        """None is live: one that says why, or takes requests though it does not serve."""
        cores = list(self._cores.values())
        return next((core for core in cores if core.tunnel.status.state == "stalled"), cores[0])

    # What became of them

    def over(self, core: Core, request_id: str) -> None:
        if self._open.get(request_id) is core:
            del self._open[request_id]

    def served(self, core: Core) -> None:
        """An answer of that core came whole."""
        if self.outliers and self.outliers.served(core.address, self._now()):
            log.info("a core serves again", region=self.region, core=core.address)
            self._refresh()

    def failed(self, core: Core, request_id: str, error: Failed) -> Failed:
        """An exchange failed there. What is to be said of it: that a core closes is the death of
        one way, where there are others."""
        core.failed.append(request_id)
        if isinstance(error, RegionFailure) and error.failure.code == "draining":
            self._note(core, "it is closing", stalled=True)
            if len(self._live) > 1:
                return PathDown(self.region, f"the core at {core.address} is closing")
        elif not isinstance(error, PathDown):
            fault = fault_of(error)
            if fault:
                self._note(core, fault)
        return error

    def fault(self, request_id: str, why: str) -> bool:
        """A request failed; its core is to blame, if it is known which. Whether the region is:
        all of its cores that live have failed since they last served."""
        core = self._open.get(request_id)
        if core is not None:
            core.failed.append(request_id)
            self._note(core, why)
        now = self._now()
        return all(self.outliers.failing(core.address, now) for core in self._live)

    def distrust(self, request_ids: Collection[str], why: str) -> list[str] | None:
        """These requests stand still. None: so do all cores that live; else those that have them
        are left alone for a while, and all requests there are returned."""
        bad = {core for i in request_ids if (core := self._open.get(i)) is not None}
        if not bad or all(core in bad for core in self._live):
            return None
        for core in bad:
            self._note(core, why, stalled=True)
        return [request_id for request_id, core in self._open.items() if core in bad]

    def stuck(self) -> list[str]:
        """Requests at cores that stand still, where others serve."""
        if not (self._stalled and self._live):
            return []
        then = self._now() - STALL_S
        late = {core for core in self._stalled if (core.stalled_s or 0.0) <= then}
        return [request_id for request_id, core in self._open.items() if core in late]

    def _note(self, core: Core, why: str, *, stalled: bool = False) -> None:
        note = self.outliers.stalled if stalled else self.outliers.failed
        if note(core.address, why, self._now()):
            log.warning("a core is left alone", region=self.region, core=core.address, why=why)
            self._refresh()

    def look(self) -> None:
        """Time has passed: those who were left alone may be asked again."""
        if self.outliers or self._returning:
            self._refresh()

    def left_alone(self) -> dict[str, str]:
        """Address -> why it is not asked, of cores that are reached."""
        return self.outliers.left_alone(self._now()) if self.outliers else {}

    def _refresh(self) -> None:
        self.outliers.keep(self._cores)
        self._usable = self._live
        self._returning = False
        if not self.outliers:
            return
        now = self._now()
        alone = self.outliers.left_alone(now)
        self._usable = [core for core in self._live if core.address not in alone] or self._live
        for core in self._cores.values():
            core.part = self.outliers.part(core.address, now)
            self._returning = self._returning or core.part < 1.0


Failed = PathDown | RegionFailure | OverlayProtocolError


class _Replica:
    """An exchange with one of several cores."""

    __slots__ = ("_core", "_exchange", "_owner", "_request_id")

    def __init__(self, owner: Replicas, core: Core, request_id: str, exchange: Exchange) -> None:
        self._owner = owner
        self._core = core
        self._request_id = request_id
        self._exchange = exchange

    async def next(self) -> Accept | Tokens | End:
        try:
            frame = await self._exchange.next()
        except (PathDown, RegionFailure, OverlayProtocolError) as error:
            told = self._failed(error)
            if told is error:
                raise
            raise told from error
        if type(frame) is End:
            self._served()
        return frame

    async def pour(self, take: Take) -> Accept | End:
        try:
            frame = await self._exchange.pour(take)
        except (PathDown, RegionFailure, OverlayProtocolError) as error:
            told = self._failed(error)
            if told is error:
                raise
            raise told from error
        if type(frame) is End:
            self._served()
        return frame

    def cancel(self) -> None:
        self._exchange.cancel()
        self._owner.over(self._core, self._request_id)

    def _served(self) -> None:
        self._owner.over(self._core, self._request_id)
        self._owner.served(self._core)

    def _failed(self, error: Failed) -> Failed:
        self._owner.over(self._core, self._request_id)
        return self._owner.failed(self._core, self._request_id, error)
