"""One tunnel per region of the snapshot, replaced without dropping what runs in it.

Where a region is reached: at the address of the link from this edge to it, when that names
one, else at one of the region's cores. Workers begin with different cores, and a tunnel that
cannot connect gives way to the region's next one. A new address is connected to before the old
one is let go, and a tunnel that is let go stays open until its exchanges have ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from edge_node.forward.upstream import Exchange
from runtime import logs
from runtime.identity import Identity
from topology.overlay.errors import PathDown
from topology.overlay.frames import Request
from topology.overlay.tunnel import Tunnel, TunnelStatus
from topology.resources import Key
from topology.routing import RegionView, Views
from topology.snapshot import Snapshot

log = logs.get("tunnels")

VIEWS_FRESH_S = 0.25  # how old a measured round-trip time may be when a region is chosen
RETIRED_CHECK_S = 0.5
RETIRED_AT_MOST_S = 120.0  # then a tunnel is closed with exchanges still in it

OnChange: TypeAlias = Callable[[TunnelStatus], None]
MakeTunnel: TypeAlias = Callable[[str, str, OnChange], Tunnel]  # region, address, on_change


def addresses_of(snapshot: Snapshot, edge: str, region: str) -> tuple[str, ...]:
    """Where `edge` may reach `region`, as "host:port", in the region's own order."""
    link = snapshot.link(Key("EdgeSite", edge), Key("Region", region))
    if link is not None and link.address is not None:
        return (link.address,)
    return snapshot.regions[region].cores


class Road:
    """The way to one region: the tunnel in use, and the one that is to replace it."""

    def __init__(self, region: str, addresses: tuple[str, ...], turn: int) -> None:
        self.region = region
        self.addresses = addresses
        self.turn = turn  # which address is used, modulo their number
        self.tunnel: Tunnel | None = None
        self.coming: Tunnel | None = None

    @property
    def address(self) -> str:
        return self.addresses[self.turn % len(self.addresses)]


class Tunnels:
    """All the tunnels of one edge worker. An `Upstream`."""

    def __init__(self, edge: str, worker: int, make: MakeTunnel) -> None:
        self._edge = edge
        self._worker = worker
        self._make = make
        self._roads: dict[str, Road] = {}
        self._retired: list[tuple[Tunnel, float]] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._views: Views = {}
        self._views_until = 0.0
        self._closed = False
        self._news = asyncio.Event()

    # Upstream

    def views(self) -> Views:
        now = asyncio.get_running_loop().time()
        if now >= self._views_until:
            views = {
                region: RegionView(road.tunnel.connected, road.tunnel.rtt_ms)
                for region, road in self._roads.items()
                if road.tunnel is not None
            }
            if views != self._views:
                self._views = views
            self._views_until = now + VIEWS_FRESH_S
        return self._views

    def distrust(self, region: str, why: str) -> None:
        """The region answers probes and does not serve: choose others for a while."""
        log.warning("a region does not serve", region=region, why=why)

    def open(self, region: str, request: Request, body: bytes, relay: str = "") -> Exchange:
        road = self._roads.get(region)
        if road is None or road.tunnel is None:
            raise PathDown(region, "this edge has no tunnel to it")
        return road.tunnel.open(request, body)

    # The snapshot's will

    def use(self, snapshot: Snapshot) -> None:
        """Follow a new snapshot. Needs a running event loop."""
        for region in snapshot.regions:
            addresses = addresses_of(snapshot, self._edge, region)
            road = self._roads.get(region)
            if road is None:
                road = self._roads[region] = Road(region, addresses, self._worker)
                road.tunnel = self._start(road)
            elif road.addresses != addresses:
                self._readdress(road, addresses)
        for region in [name for name in self._roads if name not in snapshot.regions]:
            road = self._roads.pop(region)
            self._retire(road.tunnel)
            self._retire(road.coming)
        self._views_until = 0.0
        self._news.set()

    def renew(self, identity: Identity) -> None:
        """Show this identity from the next connection of each tunnel on; those that are there
        stay. Raises `IdentityError` when it is unusable."""
        for road in self._roads.values():
            for tunnel in (road.tunnel, road.coming):
                if tunnel is not None:
                    tunnel.use(identity)

    def statuses(self) -> list[TunnelStatus]:
        return [r.tunnel.status for r in self._roads.values() if r.tunnel is not None]

    async def all_connected(self) -> None:
        """Return once there are regions, and each of them is connected."""
        while not (self._roads and all(self._is_connected(r) for r in self._roads.values())):
            self._news.clear()
            await self._news.wait()

    @staticmethod
    def _is_connected(road: Road) -> bool:
        return road.tunnel is not None and road.tunnel.connected

    async def close(self) -> None:
        """Close all of them at once; what still runs in them ends with `PathDown`."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        roads, self._roads = list(self._roads.values()), {}
        tunnels = [tunnel for tunnel, _ in self._retired]
        tunnels += [t for road in roads for t in (road.tunnel, road.coming) if t is not None]
        self._retired.clear()
        await asyncio.gather(*(tunnel.close() for tunnel in tunnels), *self._closing)

    # Replacement

    def _start(self, road: Road) -> Tunnel:
        tunnel = self._make(road.region, road.address, self._changed)
        tunnel.start()
        return tunnel

    def _readdress(self, road: Road, addresses: tuple[str, ...]) -> None:
        road.addresses = addresses
        self._retire(road.coming)
        road.coming = None
        if road.tunnel is not None and road.tunnel.address == road.address:
            return
        road.coming = self._start(road)
        log.info("region readdressed", region=road.region, address=road.address)

    def _changed(self, status: TunnelStatus) -> None:
        """A tunnel connected, failed or closed."""
        self._views_until = 0.0
        self._news.set()
        road = self._roads.get(status.region)
        if road is None or self._closed:
            return
        log.debug("tunnel", region=status.region, state=status.state, reason=status.reason)
        if status.state == "connected":
            self._promote(road)
        elif status.state == "waiting":
            self._next_core(road, status)

    def _promote(self, road: Road) -> None:
        if road.coming is not None and road.coming.connected:
            self._retire(road.tunnel)
            road.tunnel, road.coming = road.coming, None

    def _next_core(self, road: Road, status: TunnelStatus) -> None:
        """The address failed: let a tunnel to the region's next one come, if it has another."""
        latest = road.coming or road.tunnel
        if len(road.addresses) < 2 or latest is None or latest.address != status.address:
            return
        road.turn += 1
        self._retire(road.coming)
        road.coming = self._start(road)

    def _retire(self, tunnel: Tunnel | None) -> None:
        if tunnel is None:
            return
        loop = asyncio.get_running_loop()
        self._retired.append((tunnel, loop.time() + RETIRED_AT_MOST_S))
        if self._sweep is None:
            self._sweep = loop.call_soon(self._close_retired)  # type: ignore[assignment]

    def _close_retired(self) -> None:
        loop = asyncio.get_running_loop()
        now, kept = loop.time(), []
        for tunnel, until in self._retired:
            if tunnel.status.open_exchanges and now < until:
                kept.append((tunnel, until))
                continue
            task = loop.create_task(tunnel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._retired = kept
        self._sweep = loop.call_later(RETIRED_CHECK_S, self._close_retired) if kept else None
