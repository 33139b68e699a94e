"""The tunnels to the cores of one region that is reached directly.

Workers begin with different cores. With no more than `MOST` of them a worker is connected to all;
the others are spares, and take the place of those that are lost. Which core is asked, and what is
made of it: `edge_node.forward.replicas`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator

from edge_node.forward.path import Connect, LetGo
from runtime import logs
from runtime.identity import Identity
from topology.overlay.monitor import Estimate
from topology.overlay.tunnel import Tunnel, TunnelStatus
from topology.paths import name_of

log = logs.get("replicas")

MOST = 4  # cores of a region that a worker is connected to; while some are replaced, twice that
SPARE_MIN_S, SPARE_MAX_S = 0.1, 5.0  # between spares, while none of them does
CALM_S = 10.0  # after so long without one, the next is at once again
REMEMBERED = 64  # requests that a core failed last
FAILED = ("silent", "stalled", "waiting")


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


class Cores:
    """Of one region, for one edge worker. It is a way as `edge_node.forward.path.Path` is, which
    leads through no relay. The leading tunnel, `tunnel`, is what relays are bound through, and all
    there is where a region has one address. `now` is the clock of `Core.stalled_s`. Needs a running
    event loop.
    """

    relay = ""

    def __init__(
        self,
        region: str,
        connect: Connect,
        let_go: LetGo,
        on_change: Callable[[], None],
        now: Callable[[], float],
    ) -> None:
        self.region = region
        self.addresses: tuple[str, ...] = ()
        self.tunnel: Tunnel | None = None  # the leading one
        self.several = False  # `open` is to be asked, and not the tunnel
        self._connect = connect
        self._let_go = let_go
        self._on_change = on_change
        self._now = now
        self._turn = 0
        self._ring: tuple[str, ...] = ()
        self._cores: dict[str, Core] = {}
        self._live: list[Core] = []
        self._stalled: list[Core] = []
        self._told: object = None
        self._adding: asyncio.Handle | None = None
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
        """Of the nearest core; where none is up, of one that says why."""
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

    def end(self) -> None:
        """Let all of it go."""
        self._ended = True
        if self._adding is not None:
            self._adding.cancel()
        for core in self._cores.values():
            self._let_go(core.tunnel)

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
        self._stalled = [
            core for core in self._cores.values() if core.tunnel.status.state == "stalled"
        ]
        for core in self._cores.values():
            core.stalled_s = (core.stalled_s or self._now()) if core in self._stalled else None
        self._refresh()
        told = self.tunnel, tuple(self._live), bool(self._stalled)
        if told != self._told:
            self._told = told
            self._on_change()

    def _refresh(self) -> None:
        """Others live than before, or may be asked."""

    def _arrange(self) -> None:
        """Let go whom others have replaced, and let a spare come for one that is lost."""
        most = self._most
        kept = self._kept()
        live = [core for core in kept if core.tunnel.connected]
        old = [core for core in self._cores.values() if core.leaving]
        if live:
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
            self._adding = loop.call_soon(self._add)
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


def _first(estimates: list[Estimate]) -> Estimate | None:
    return estimates[0] if estimates else None


def _distance(estimate: Estimate) -> float:
    return estimate.rtt_ms if estimate.rtt_ms is not None else float("inf")
