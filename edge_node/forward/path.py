"""One way from this edge to one region: the tunnel in use, and the one that is to replace it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from runtime import logs
from runtime.identity import Identity
from topology.overlay.tunnel import Tunnel, TunnelStatus
from topology.paths import name_of

log = logs.get("tunnels")

Connect: TypeAlias = Callable[[str, Callable[[TunnelStatus], None]], Tunnel]  # address, on_change
MOVE_MIN_S, MOVE_MAX_S = 0.1, 5.0  # between addresses, while none of them does
CALM_S = 10.0  # after so long without a move, the next one is at once again

LetGo: TypeAlias = Callable[[Tunnel | None], None]


class Path:
    """A direct one may have several addresses and goes from one that fails to the next; one
    through a relay has the relay's, and asks it for another core at each attempt.

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
        self.addresses: tuple[str, ...] = ()
        self.tunnel: Tunnel | None = None
        self.coming: Tunnel | None = None
        self._turn = 0
        self._connect = connect
        self._let_go = let_go
        self._on_change = on_change
        self._told: object = None
        self._moving: asyncio.TimerHandle | None = None
        self._moved_s = -CALM_S
        self._pause_s = MOVE_MIN_S
        self._ended = False

    def start(self, addresses: tuple[str, ...], turn: int = 0) -> None:
        """Begin to connect. `turn` says with which address, modulo their number."""
        self.addresses, self._turn = addresses, turn
        self.tunnel = self._begin()

    @property
    def name(self) -> str:
        return name_of(self.relay)

    @property
    def connected(self) -> bool:
        return self.tunnel is not None and self.tunnel.connected

    @property
    def address(self) -> str:
        """The address to connect to next."""
        return self.addresses[self._turn % len(self.addresses)]

    @property
    def reached(self) -> str:
        """The address of the tunnel in use."""
        return self.tunnel.address if self.tunnel is not None else self.address

    def readdress(self, addresses: tuple[str, ...]) -> None:
        """Connect to these; what is connected to another stays until that has come about."""
        if addresses == self.addresses:
            return
        self.addresses = addresses
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
        if self._moving is not None:
            self._moving.cancel()
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
        elif status.state in ("silent", "stalled", "waiting"):
            self._failed(status.address)
        stalled = self.tunnel is not None and self.tunnel.status.state == "stalled"
        told = self.tunnel, self.connected, stalled
        if told != self._told:
            self._told = told
            self._on_change(self)

    def _failed(self, address: str) -> None:
        """What is at the address fails: let a tunnel to the next one come, if there is another;
        later each time that it happens again soon."""
        if len(self.addresses) < 2 or self._moving is not None or self._latest != address:
            return
        loop = asyncio.get_running_loop()
        if loop.time() - self._moved_s >= CALM_S:
            self._pause_s = MOVE_MIN_S
            self._move_on(address)
        else:
            self._moving = loop.call_later(self._pause_s, self._move_on, address)
            self._pause_s = min(MOVE_MAX_S, 2.0 * self._pause_s)

    @property
    def _latest(self) -> str:
        """The address that was connected to last."""
        latest = self.coming or self.tunnel
        return latest.address if latest is not None else ""

    def _move_on(self, failed: str) -> None:
        self._moving = None
        works = self.coming is None and self.connected
        if self._ended or works or self._latest != failed or len(self.addresses) < 2:
            return
        self._moved_s = asyncio.get_running_loop().time()
        self._turn += 1
        self._let_go(self.coming)
        self.coming = self._begin()
