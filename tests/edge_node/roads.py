"""Tunnels that connect, fail and measure as they are told: the network is made up, the paths of
an edge are real. Time is told too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from edge_node.forward.tunnels import OnChange, Tunnels
from runtime.clock import ManualClock
from tests.topology.worlds import document
from topology.overlay.errors import PathDown
from topology.overlay.frames import Request
from topology.overlay.monitor import Estimate, PathState
from topology.overlay.tunnel import Tunnel, TunnelStatus
from topology.overlay.via import Via

ASK = Request("r", "acme", "small", 9, 3, 1, False)
LIVE = ("up", "suspect")


class FakeTunnel:
    def __init__(
        self, name: str, address: str, on_change: OnChange, via: Via | None, turn: int
    ) -> None:
        self.region, self.address, self.via, self.turn = name, address, via, turn
        self._on_change = on_change
        self.state = "waiting"
        self.why = ""
        self.open_exchanges = 0
        self.rtt_ms: float | None = None
        self.loss = 0.0
        self.requests = 0
        self.bound: list[tuple[str, int]] = []
        self.closed = False
        self.identities = 0

    def start(self) -> None:
        self.become("connecting")

    def become(self, state: str, why: str = "told so") -> None:
        self.state, self.why = state, why
        self._on_change(self.status)

    @property
    def connected(self) -> bool:
        return self.state in LIVE

    @property
    def estimate(self) -> Estimate:
        state = cast(PathState, self.state)
        if not self.connected and state != "stalled":
            return Estimate.unknown(state, 0.0, self.why)
        return Estimate(self.rtt_ms, 0.0, self.loss, 0.0, 0.0, state, 0.0, self.why)

    @property
    def status(self) -> TunnelStatus:
        return TunnelStatus(
            region=self.region,
            address=self.address,
            state=self.state,  # type: ignore[arg-type]
            since_s=0.0,
            rtt_ms=self.rtt_ms,
            reason=self.why,
            open_exchanges=self.open_exchanges,
            connects=1,
            connected=int(self.connected),
            exchanges=self.requests,
            refused_locally=0,
            path_downs=0,
        )

    def use(self, identity: object) -> None:
        self.identities += 1

    def open(self, request: Request, body: bytes) -> Any:
        if not (self.connected or self.state == "stalled"):
            raise PathDown(self.region, self.why)
        self.requests += 1
        return object()

    async def bind(self, region: str, turn: int) -> Any:
        self.bound.append((region, turn))
        return object()

    async def close(self) -> None:
        self.closed = True
        self.become("closed")


class Roads:
    """One edge's tunnels over made-up ones."""

    def __init__(self, worker: int = 0) -> None:
        self.clock = ManualClock()
        self.made: list[FakeTunnel] = []
        self.tunnels = Tunnels("london", worker, self._make, self.clock)

    def _make(
        self, name: str, address: str, on_change: OnChange, /, *, via: Via | None, turn: int
    ) -> Tunnel:
        tunnel = FakeTunnel(name, address, on_change, via, turn)
        self.made.append(tunnel)
        return cast(Tunnel, tunnel)

    def of(self, name: str) -> list[FakeTunnel]:
        """The direct ones, oldest first."""
        return [t for t in self.made if t.region == name and t.via is None]

    def via(self, name: str, relay: str) -> FakeTunnel:
        """The one in use through a relay."""
        path = self.path(name, relay)
        return cast(FakeTunnel, path.tunnel)

    def path(self, name: str, relay: str) -> Any:
        (road,) = (road for road in self.tunnels.roads() if road.region == name)
        return road.paths[relay]

    def relays(self, name: str) -> list[str]:
        (road,) = (road for road in self.tunnels.roads() if road.region == name)
        return list(road.relayed)

    def send(self, name: str, relay: str = "") -> None:
        self.tunnels.open(name, ASK, b"", relay)

    def order(self, name: str) -> list[str]:
        """The ways to a region that live, in the order of use."""
        return [path.relay for path in self.tunnels.views()[name].paths if path.up]

    def reachable(self, name: str) -> bool:
        return self.tunnels.views()[name].reachable

    def connect(self, rtt_ms: dict[str, float]) -> None:
        """All direct tunnels; each region is so far away."""
        for name, distance_ms in rtt_ms.items():
            tunnel = self.of(name)[-1]
            tunnel.rtt_ms = distance_ms
            tunnel.become("up")

    def review(self) -> None:
        """Look at the relays of all regions now."""
        self.tunnels._review_in(0.0)
        for _ in range(len(self.tunnels._due)):
            self.tunnels._review_next()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20.0):
        while not holds():
            await asyncio.sleep(0.01)


def onward(relay: str, region: str, rtt_ms: float, **spec: Any) -> dict[str, Any]:
    """A link between two regions, over which one relays to the other."""
    return document(
        "Link",
        f"{relay}-{region}",
        source=f"Region/{relay}",
        target=f"Region/{region}",
        rtt_ms=rtt_ms,
        **spec,
    )


def relaying(relays: int) -> dict[str, Any]:
    """The policy: so many relays for each region."""
    return document("Policy", "default", paths={"relays_per_region": relays})
