"""One way from this edge to one region, through a relay: the tunnel in use, and the one that is to
replace it. Where no relay is in the way: `edge_node.forward.replicas`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from runtime import logs
from runtime.identity import Identity
from topology.overlay.monitor import Estimate
from topology.overlay.tunnel import Tunnel, TunnelStatus
from topology.paths import name_of

log = logs.get("tunnels")

Connect: TypeAlias = Callable[[str, Callable[[TunnelStatus], None]], Tunnel]  # address, on_change
LetGo: TypeAlias = Callable[[Tunnel | None], None]


class Path:
    """It has the relay's address, and asks it for another core of the region at each attempt.

    `connect` makes a tunnel to an address, `let_go` takes one that is not wanted any more, and
    `on_change` is called when another tunnel is in use, or what requests can expect of it has
    changed. Needs a running event loop.
    """

    def __init__(
        self,
        region: str,
        relay: str,
        connect: Connect,
        let_go: LetGo,
        on_change: Callable[[Path], None],
    ) -> None:
        self.region = region
        self.relay = relay
        self.address = ""
        self.several = False  # there is one tunnel to open exchanges in
        self.tunnel: Tunnel | None = None
        self.coming: Tunnel | None = None
        self._connect = connect
        self._let_go = let_go
        self._on_change = on_change
        self._told: object = None
        self._ended = False

    def start(self, address: str) -> None:
        """Begin to connect."""
        self.address = address
        self.tunnel = self._begin()

    @property
    def name(self) -> str:
        return name_of(self.relay)

    @property
    def connected(self) -> bool:
        return self.tunnel is not None and self.tunnel.connected

    @property
    def estimate(self) -> Estimate | None:
        return self.tunnel.estimate if self.tunnel is not None else None

    @property
    def open_exchanges(self) -> int:
        return self.tunnel.open_exchanges if self.tunnel is not None else 0

    def tunnels(self) -> Iterator[Tunnel]:
        """The one in use."""
        if self.tunnel is not None:
            yield self.tunnel

    def readdress(self, address: str) -> None:
        """Connect to it; what is connected to another stays until that has come about."""
        if address == self.address:
            return
        self.address = address
        self._let_go(self.coming)
        self.coming = None
        if self.tunnel is not None and self.tunnel.address == self.address:
            return
        log.info("path readdressed", region=self.region, path=self.name, address=self.address)
        self.coming = self._begin()

    def use(self, identity: Identity) -> None:
        """Show this identity from the next connection on. Raises `IdentityError`."""
        for tunnel in (self.tunnel, self.coming):
            if tunnel is not None:
                tunnel.use(identity)

    def end(self) -> None:
        """Let both tunnels go."""
        self._ended = True
        self._let_go(self.coming)
        self._let_go(self.tunnel)

    def _begin(self) -> Tunnel:
        made: list[Tunnel] = []

        def changed(status: TunnelStatus) -> None:
            if not self._ended and made and made[0] in (self.tunnel, self.coming):
                self._changed(status)

        made.append(self._connect(self.address, changed))
        made[0].start()
        return made[0]

    def _changed(self, status: TunnelStatus) -> None:
        log.debug("tunnel", region=self.region, path=self.name, state=status.state)
        if self.coming is not None and self.coming.connected:
            self._let_go(self.tunnel)
            self.tunnel, self.coming = self.coming, None
        stalled = self.tunnel is not None and self.tunnel.status.state == "stalled"
        told = self.tunnel, self.connected, stalled
        if told != self._told:
            self._told = told
            self._on_change(self)
