"""The direct way to a region: tunnels to several of its cores, and which of them is asked.

Workers begin with different cores. With no more than `MOST` of them a worker is connected to all;
the others are spares, and take the place of those that are lost. Each exchange is opened at the
one of two random cores that has fewer open (the power of two choices); a core that returns from
failing counts for more than it has; one that is held or dead is left out, unless all are.

A request that comes again is not sent to a core that failed it. The leading tunnel, `tunnel`, is
what relays are bound through, and all there is where a region has one address.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterator
from random import Random

from edge_node.forward.blame import fault_of
from edge_node.forward.outliers import Outliers
from edge_node.forward.path import Connect, LetGo
from edge_node.forward.upstream import Exchange
from runtime import logs
from runtime.identity import Identity
from topology.overlay.errors import OverlayProtocolError, PathDown, RegionFailure
from topology.overlay.exchange import Take
from topology.overlay.frames import Accept, End, Request, Tokens
from topology.overlay.monitor import Estimate
from topology.overlay.tunnel import Tunnel, TunnelStatus
from topology.paths import name_of
from topology.policy import OutlierPolicy

log = logs.get("replicas")

MOST = 4  # cores of a region that a worker is connected to; while some are replaced, twice that
SPARE_MIN_S, SPARE_MAX_S = 0.1, 5.0  # between spares, while none of them does
CALM_S = 10.0  # after so long without one, the next is at once again
REMEMBERED = 64  # requests that a core failed last
FAILED = ("silent", "stalled", "waiting")
STALL_S = 1.0  # a core that says for so long that it gets nowhere loses what it has


class Core:
    """One core of the region."""

    __slots__ = ("address", "failed", "leaving", "part", "stalled_s", "tunnel")

    def __init__(self, address: str, tunnel: Tunnel) -> None:
        self.address = address
        self.tunnel = tunnel
        self.stalled_s: float | None = None  # since when it says that it gets nowhere
        self.leaving = False  # the region does not name it any more
        self.part = 1.0  # of its part of the requests
        self.failed: deque[str] = deque(maxlen=REMEMBERED)  # requests, by their ids

    @property
    def has_failed(self) -> bool:
        return self.tunnel.status.state in FAILED


class Replicas:
    """Of one region, for one edge worker. See `edge_node.forward.path.Path`, whose place it takes
    where no relay is in the way. `now` is the clock of `outliers`. Needs a running event loop."""

    relay = ""
    coming = None

    def __init__(
        self,
        region: str,
        connect: Connect,
        let_go: LetGo,
        on_change: Callable[[Replicas], None],
        rng: Random,
        now: Callable[[], float],
    ) -> None:
        self.region = region
        self.addresses: tuple[str, ...] = ()
        self.tunnel: Tunnel | None = None  # the leading one
        self.several = False  # `open` is to be asked, and not the tunnel
        self.outliers = Outliers(rng)
        self._connect = connect
        self._let_go = let_go
        self._on_change = on_change
        self._draw = rng.random
        self._now = now
        self._turn = 0
        self._ring: tuple[str, ...] = ()
        self._cores: dict[str, Core] = {}
        self._live: list[Core] = []
        self._usable: list[Core] = []  # those of them that are not left alone
        self._returning = False  # one of them is
        self._stalled: list[Core] = []
        self._open: dict[str, Core] = {}  # request id -> where it is
        self._told: object = None
        self._adding: asyncio.TimerHandle | None = None
        self._added_s = -CALM_S
        self._pause_s = SPARE_MIN_S
        self._ended = False

    # As a path

    @property
    def name(self) -> str:
        return name_of("")

    @property
    def connected(self) -> bool:
        return bool(self._live)

    @property
    def live(self) -> int:
        """Cores that can be asked."""
        return len(self._live)

    @property
    def kept(self) -> int:
        """Cores that are kept connected, or are to be."""
        return len(self._cores)

    @property
    def reached(self) -> str:
        """The address of the leading tunnel."""
        return self.tunnel.address if self.tunnel is not None else self._ring[0]

    @property
    def estimate(self) -> Estimate | None:
        """What is measured of the nearest core; where none is up, of one that says at least why."""
        if not self.several:
            return self.tunnel.estimate if self.tunnel is not None else None
        found = [core.tunnel.estimate for core in self._live]
        if not found:
            estimates = [core.tunnel.estimate for core in self._cores.values()]
            return next((e for e in estimates if e.state == "stalled"), _first(estimates))
        return min(found, key=_distance)

    @property
    def open_exchanges(self) -> int:
        return sum(core.tunnel.open_exchanges for core in self._cores.values())

    def tunnels(self) -> Iterator[Tunnel]:
        for core in self._cores.values():
            yield core.tunnel

    def start(self, addresses: tuple[str, ...], turn: int = 0) -> None:
        """Begin to connect. `turn` says with which address, modulo their number."""
        self._turn = turn
        self.readdress(addresses)

    def readdress(self, addresses: tuple[str, ...]) -> None:
        """Connect to these; what is connected to others stays until that has come about."""
        if addresses == self.addresses:
            return
        at = self._turn % len(addresses)
        self.addresses, self._ring = addresses, addresses[at:] + addresses[:at]
        for core in list(self._cores.values()):
            core.leaving = core.address not in self._ring
            if core.leaving and core.tunnel is not self.tunnel and not core.tunnel.connected:
                self._drop(core)
        missing = self._most - len(self._kept())
        others = [address for address in self._ring if address not in self._cores]
        for address in others[: max(0, missing)]:
            self._begin(address)
        self._settle()

    def use(self, identity: Identity) -> None:
        """Show this identity from the next connection on. Raises `IdentityError`."""
        for tunnel in self.tunnels():
            tunnel.use(identity)

    def follow(self, policy: OutlierPolicy) -> None:
        """Leave cores alone by this policy."""
        self.outliers.use(policy)
        self._refresh()

    def end(self) -> None:
        """Let all of it go."""
        self._ended = True
        if self._adding is not None:
            self._adding.cancel()
        for core in self._cores.values():
            self._let_go(core.tunnel)

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
        if self.outliers:
            self._refresh()

    def left_alone(self) -> dict[str, str]:
        """Address -> why it is not asked, of cores that are reached."""
        return self.outliers.left_alone(self._now()) if self.outliers else {}

    def _refresh(self) -> None:
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

    # Tunnels come and go

    @property
    def _most(self) -> int:
        return min(MOST, len(self._ring))

    def _kept(self) -> list[Core]:
        return [core for core in self._cores.values() if not core.leaving]

    def _begin(self, address: str) -> None:
        def changed(_: TunnelStatus) -> None:
            if not self._ended and self._cores.get(address) is core:
                self._settle()

        core = Core(address, self._connect(address, changed))
        self._cores[address] = core
        core.tunnel.start()

    def _drop(self, core: Core) -> None:
        del self._cores[core.address]
        self._let_go(core.tunnel)

    def _settle(self) -> None:
        """Something changed: let go who is not needed, find who leads, and say so."""
        self._arrange()
        self._live = [core for core in self._cores.values() if core.tunnel.connected]
        tunnels = [core.tunnel for core in self._cores.values()]
        if self.tunnel is None or self.tunnel not in tunnels or not self.tunnel.connected:
            stays = self.tunnel if self.tunnel in tunnels else tunnels[0]
            self.tunnel = next((tunnel for tunnel in tunnels if tunnel.connected), stays)
        self.several = len(self._cores) > 1
        self.outliers.keep(self._cores)
        self._refresh()
        self._stalled = [
            core for core in self._cores.values() if core.tunnel.status.state == "stalled"
        ]
        for core in self._cores.values():
            core.stalled_s = (core.stalled_s or self._now()) if core in self._stalled else None
        told = self.tunnel, tuple(self._live), bool(self._stalled)
        if told != self._told:
            self._told = told
            self._on_change(self)

    def _arrange(self) -> None:
        most = self._most
        kept = self._kept()
        live = [core for core in kept if core.tunnel.connected]
        old = [core for core in self._cores.values() if core.leaving]
        for core in old[max(0, most - len(live)) :]:
            self._drop(core)
        extra = len(kept) - most
        if len(live) >= most:
            for core in [c for c in kept if not c.tunnel.connected] + live[most:]:
                if extra > 0:
                    self._drop(core)
                    extra -= 1
            return
        for core in kept[most:]:
            if core.has_failed:  # as a spare: another one is to try
                self._drop(core)
                extra -= 1
        failed = sum(core.has_failed for core in kept[:most])
        if failed > extra and len(self._ring) > most and self._adding is None:
            self._add_later()

    def _add_later(self) -> None:
        """Let a spare come; later each time that it happens again soon."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._added_s >= CALM_S:
            self._pause_s = SPARE_MIN_S
            self._adding = loop.call_soon(self._add)  # type: ignore[assignment]
        else:
            self._adding = loop.call_later(self._pause_s, self._add)
            self._pause_s = min(SPARE_MAX_S, 2.0 * self._pause_s)

    def _add(self) -> None:
        self._adding = None
        kept = self._kept()
        failed = sum(core.has_failed for core in kept[: self._most])
        spares = [address for address in self._ring if address not in self._cores]
        if self._ended or not spares or failed <= len(kept) - self._most:
            return
        self._added_s = asyncio.get_running_loop().time()
        self._turn += 1
        address = spares[self._turn % len(spares)]
        log.info("a spare core is connected to", region=self.region, core=address)
        self._begin(address)
        self._settle()


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


def _first(estimates: list[Estimate]) -> Estimate | None:
    return estimates[0] if estimates else None


def _distance(estimate: Estimate) -> float:
    return estimate.rtt_ms if estimate.rtt_ms is not None else float("inf")
