"""Every way from one edge worker to every region, kept connected: direct, and through relays.

Where a region is reached directly: at the address of the link from this edge to it, when that
names one, else at up to four of the region's cores at once (`edge_node.forward.replicas`). A new
address is connected to before the old one is let go, and a tunnel that is let go stays open until
its exchanges have ended.

Beside them stands one tunnel through each relay that is worth it (`topology.relays`), bound through
the direct tunnel to that relay and following it. All are connected at all times, so that to go
another way costs no handshake. Of R regions with C cores (four at most count) and P relays each
there are R * (C + P) tunnels, one more of a region whose relay is being exchanged, and for each a
tunnel that is to replace it at most; those that were let go are bounded in number and time.

Which way is taken is settled in `topology.paths`, and who takes it in `topology.routing`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator
from random import Random
from typing import Protocol, TypeAlias

from msgspec.structs import replace

from edge_node.forward.outliers import Outliers, State
from edge_node.forward.path import Connect, Path
from edge_node.forward.path_log import PathLog, kind_of
from edge_node.forward.replicas import Replicas
from edge_node.forward.retired import Retired
from edge_node.forward.road import Road, Through, report
from edge_node.forward.upstream import Exchange
from runtime import logs
from runtime.clock import Clock, SystemClock
from runtime.identity import Identity
from topology.overlay.errors import PathDown
from topology.overlay.frames import Request
from topology.overlay.tunnel import Tunnel, TunnelStatus
from topology.overlay.via import Via
from topology.paths import Choice, name_of
from topology.policy import OutlierPolicy
from topology.relays import candidates
from topology.resources import Key
from topology.routing import RegionView, Views
from topology.snapshot import Snapshot
from topology.wire.path_reports import PathReport

log = logs.get("tunnels")

VIEWS_FRESH_S = 0.25  # how old a measurement may be when a way is chosen
REVIEW_S = 30.0  # between looks at which relays are worth keeping
SETTLE_S = 1.0  # the first look is when all regions are measured, or so long after the start

OnChange: TypeAlias = Callable[[TunnelStatus], None]


class MakeTunnel(Protocol):
    """Makes a tunnel to a region at an address, or `via` a relay, beginning with core `turn`."""

    def __call__(
        self, region: str, address: str, on_change: OnChange, /, *, via: Via | None, turn: int
    ) -> Tunnel: ...


def addresses_of(snapshot: Snapshot, edge: str, region: str) -> tuple[str, ...]:
    """Where `edge` may reach `region`, as "host:port", in the region's own order."""
    link = snapshot.link(Key("EdgeSite", edge), Key("Region", region))
    if link is not None and link.address is not None:
        return (link.address,)
    return snapshot.regions[region].cores


class Tunnels:
    """All the tunnels of one edge worker. An `Upstream`."""

    def __init__(
        self,
        edge: str,
        worker: int,
        make: MakeTunnel,
        clock: Clock | None = None,
        rng: Random | None = None,
    ) -> None:
        self._edge = edge
        self._worker = worker
        self._make = make
        self._clock = clock or SystemClock()
        self._snapshot = Snapshot.empty()
        self._roads: dict[str, Road] = {}
        self._retired = Retired()
        self._choice = Choice()
        self._rng = rng or Random()
        self._outliers = Outliers(self._rng)
        self.log = PathLog()
        self._views: Views = {}
        self._views_until = 0.0
        self._review: asyncio.TimerHandle | None = None
        self._due: dict[str, None] = {}  # regions whose relays are to be looked at
        self._settled = False  # that was done for the first time
        self._closed = False
        self._news = asyncio.Event()

    # Upstream

    def views(self) -> Views:
        now = self._clock.now()
        if now >= self._views_until:
            self._look(now)
        return self._views

    def open(self, region: str, request: Request, body: bytes, relay: str = "") -> Exchange:
        road = self._roads.get(region)
        path = road.paths.get(relay) if road is not None else None
        if path is None or path.tunnel is None:
            raise PathDown(region, f"this edge has no way to it {_as(relay)}")
        if self._outliers and self._outliers.asked(region, self._clock.now()):
            self._views_until = 0.0  # until it is seen what becomes of this one, others are asked
        if path.several:
            assert isinstance(path, Replicas)  # no other has several
            return path.open(request, body)
        return path.tunnel.open(request, body)

    def distrust(
        self, region: str, why: str, request_ids: Collection[str] = ()
    ) -> Collection[str] | None:
        road = self._roads.get(region)
        theirs = road.direct.distrust(request_ids, why) if road is not None else None
        if theirs is not None:
            return theirs
        if self._outliers.stalled(region, why, self._clock.now()):
            self._left_alone(region, why)
        return None

    def fault(self, region: str, why: str, request_id: str) -> None:
        road = self._roads.get(region)
        if road is None or not self._snapshot.policy.overload.protect:
            return
        if road.direct.several and not road.direct.fault(request_id, why):
            return  # it is one core's, and others serve
        if self._outliers.failed(region, why, self._clock.now()):
            self._left_alone(region, why)

    def stuck(self) -> list[str]:
        return [request_id for road in self._roads.values() for request_id in road.direct.stuck()]

    def trust(self, region: str) -> None:
        if self._outliers and self._outliers.served(region, self._clock.now()):
            self._views_until = 0.0
            log.info("a region serves again", region=region)

    def _left_alone(self, region: str, why: str) -> None:
        self._views_until = 0.0
        log.warning("a region does not serve", region=region, why=why)

    def note_queue(self, region: str, queue_ms: float) -> None:
        road = self._roads.get(region)
        if road is not None:
            road.note_queue(queue_ms, self._clock.now())

    # The snapshot's will

    def use(self, snapshot: Snapshot) -> None:
        """Follow a new snapshot; once closed, none. Needs a running event loop."""
        if self._closed:
            return
        before, self._snapshot = self._snapshot, snapshot
        self._choice.use(snapshot.policy.paths)
        self._outliers.use(snapshot.policy.outliers)
        self._outliers.keep(snapshot.regions)
        for region in snapshot.regions:
            addresses = addresses_of(snapshot, self._edge, region)
            road = self._roads.get(region)
            if road is None:
                road = self._roads[region] = Road(region, self._direct(region))
                road.direct.start(addresses, self._worker)
            else:
                road.direct.readdress(addresses)
            road.direct.follow(_of_cores(snapshot))
            road.cores = len(snapshot.regions[region].cores)
        for region in [name for name in self._roads if name not in snapshot.regions]:
            self._roads.pop(region).end()
        self._choice.keep(self._roads)
        self.log.keep(self._roads)
        if self._review is None or _relays_differ(before, snapshot):
            self._review_in(0.0 if self._settled else SETTLE_S)
        self._announce()

    def renew(self, identity: Identity) -> None:
        """Show this identity from the next connection of each tunnel on; those that are there
        stay. Raises `IdentityError` when it is unusable."""
        for path in self.paths():
            path.use(identity)

    def roads(self) -> Iterator[Road]:
        yield from self._roads.values()

    def paths(self) -> Iterator[Path | Replicas]:
        """Every way there is, by region, the direct one first."""
        for road in self._roads.values():
            yield from road.paths.values()

    async def all_connected(self) -> None:
        """Return once there are regions, and each of them is connected directly."""
        while not self._all_connected():
            self._news.clear()
            await self._news.wait()

    async def close(self) -> None:
        """Close all of them at once; what still runs in them ends with `PathDown`."""
        self._closed = True
        if self._review is not None:
            self._review.cancel()
        roads, self._roads = list(self._roads.values()), {}
        for road in roads:
            road.end()
        await self._retired.close()

    # Seeing

    def _look(self, now: float) -> None:
        """Work out the views, and say which regions are reached another way than before."""
        wall_s = self._clock.wall()
        views = {}
        alone = self._outliers.left_alone(now) if self._outliers else {}
        for region, road in self._roads.items():
            road.direct.look()
            estimates = road.estimates()
            found = self._choice.advance(region, estimates, road.queue_ms(now), now, wall_s)
            road.found = found
            if found.changed is not None:
                by_name = {name_of(relay): estimate for relay, estimate in estimates.items()}
                self.log.take(found.changed, kind_of(found.changed, by_name.get))
            held = region in alone and self._outliers.state(region, now) is State.HELD
            reachable = found.first is not None and not (road.stalled or held)
            part = self._outliers.part(region, now) if region not in alone else 0.0
            cores = max(1, road.direct.live)
            views[region] = RegionView(
                reachable, found.rtt_ms, found.views, found.queue_ms, part, cores
            )
        if views != self._views:
            self._views = views
        self._views_until = now + VIEWS_FRESH_S

    def doubted(self, region: str) -> str:
        """Why a region is not to be asked though it is reached; empty: it may be."""
        road = self._roads.get(region)
        if road is None:
            return ""
        return road.stalled or self._outliers.why(region, self._clock.now())

    @property
    def left_alone_total(self) -> int:
        """Times that a region was left alone, or one of its cores."""
        return self._outliers.holds + sum(road.direct.outliers.holds for road in self.roads())

    def seen(self) -> list[PathReport]:
        """Every way as the last look at it had it, by region and in the order of use."""
        since = self._clock.wall() - self._clock.now()
        return [
            report(road, view, since, self.doubted(road.region))
            for road in self._roads.values()
            for view in road.found.views
            if view.relay in road.paths
        ]

    def _announce(self) -> None:
        self._views_until = 0.0
        self._news.set()

    def _all_connected(self) -> bool:
        roads = self._roads.values()
        return bool(roads) and all(road.direct.connected for road in roads)

    # Ways come and go

    def _path(self, region: str, relay: str) -> Path:
        return Path(
            region,
            relay,
            self._connect(region, Through(relay, self._roads)),
            self._retired.take,
            self._changed,
        )

    def _direct(self, region: str) -> Replicas:
        connect, now = self._connect(region, None), self._clock.now
        return Replicas(region, connect, self._retired.take, self._changed, self._rng, now)

    def _connect(self, region: str, via: Via | None) -> Connect:
        def connect(address: str, on_change: OnChange) -> Tunnel:
            return self._make(region, address, on_change, via=via, turn=self._worker)

        return connect

    def _changed(self, path: Path | Replicas) -> None:
        """A tunnel connected, failed, fell silent or closed."""
        self._announce()
        if self._closed or not path.connected:
            return
        if not isinstance(path, Replicas):
            if self._is_crowded(path.region):
                self._review_in(0.0, (path.region,))
            return
        for other in self.paths():
            if isinstance(other, Path) and other.relay == path.region:
                other.readdress(path.reached)
        if not self._settled and self._all_connected():
            self._review_in(0.0)

    def _is_crowded(self, region: str) -> bool:
        """Whether one relay too many is kept, until it is seen whether the newest connects."""
        road = self._roads.get(region)
        limit = self._snapshot.policy.paths.relays_per_region
        return road is not None and len(road.relayed) > limit

    def _review_in(self, delay_s: float, regions: Iterable[str] | None = None) -> None:
        """Look at the relays of these regions, or all, so much later; and all in `REVIEW_S`."""
        if self._closed:
            return
        self._due.update(dict.fromkeys(self._roads if regions is None else regions))
        if self._review is not None:
            self._review.cancel()
        self._review = asyncio.get_running_loop().call_later(delay_s, self._review_next)

    def _review_next(self) -> None:
        """One region a turn of the loop: with a hundred of them, all would take too long."""
        self._settled = True
        region = next(iter(self._due), "")
        self._due.pop(region, None)
        # First: whatever becomes of one region's relays, those of the others are looked at.
        self._review_in(0.0 if self._due else REVIEW_S, () if self._due else None)
        road = self._roads.get(region)
        if road is not None:
            self._keep_relays(road)

    def _keep_relays(self, road: Road) -> None:
        """Keep the relays that are worth it; let others go."""
        limit = self._snapshot.policy.paths.relays_per_region
        held = road.relayed
        order = self._candidates(road.region, tuple(held)) if limit else ()
        wanted = road.standby.choose(order, held, road.in_use, limit, self._clock.now())
        for relay in held.keys() - set(wanted):
            road.drop(relay)
        for relay in wanted:
            if relay not in held:
                path = road.paths[relay] = self._path(road.region, relay)
                path.start(self._roads[relay].direct.reached)
        if held.keys() != set(wanted):
            self._announce()

    def _candidates(self, region: str, kept: tuple[str, ...]) -> tuple[str, ...]:
        """The regions that can relay, best first; those that cannot be reached now are last."""
        everybody = len(self._roads)
        found = candidates(self._snapshot, self._edge, region, self._rtt_ms, everybody, kept)
        known = [relay for relay in found if relay in self._roads]
        return tuple(sorted(known, key=lambda relay: not self._roads[relay].direct.connected))

    def _rtt_ms(self, region: str) -> float | None:
        road = self._roads.get(region)
        tunnel = road.direct.tunnel if road is not None else None
        return tunnel.rtt_ms if tunnel is not None and tunnel.connected else None


def _relays_differ(one: Snapshot, other: Snapshot) -> bool:
    """Whether other relays may be worth keeping."""
    return (
        one.policy.paths != other.policy.paths
        or one.regions != other.regions
        or one.links != other.links
    )


def _of_cores(snapshot: Snapshot) -> OutlierPolicy:
    """When a core is left alone: never, where nothing protects anybody."""
    policy = snapshot.policy
    return policy.outliers if policy.overload.protect else replace(policy.outliers, panic_share=0)


def _as(relay: str) -> str:
    return f"through {relay}" if relay else "straight"
