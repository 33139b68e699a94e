"""All the ways from this edge to one region: the direct one, and those through relays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from edge_node.forward.path import Path
from edge_node.forward.replicas import Replicas
from edge_node.forward.standby import Standby
from topology.overlay.errors import PathDown
from topology.overlay.monitor import Estimate
from topology.overlay.tunnel import Tunnel
from topology.overlay.via import Bound
from topology.paths import UP, PathView, RegionPaths
from topology.wire.path_reports import PathReport

QUEUE_WEIGHT = 0.25  # of the newest figure that a region gave
QUEUE_MAX_MS = 60_000.0  # whatever it says
QUEUE_HALF_LIFE_S = 10.0  # of what it said last, while it says nothing


class Road:
    """`paths` by relay, the direct one first, under "". `found` is what was chosen last."""

    def __init__(self, region: str, direct: Replicas) -> None:
        self.region = region
        self.direct = direct
        self.paths: dict[str, Path | Replicas] = {"": direct}
        self.standby = Standby()
        self.found = RegionPaths((), {})
        self.stalled = ""  # why it does not serve, as it says itself; empty: it does, or is dead
        self.cores = 1
        self._queue_ms = 0.0
        self._queue_at = 0.0

    @property
    def in_use(self) -> str:
        """The relay that requests go through now; empty: none."""
        first = self.found.first
        return first.relay if first is not None else ""

    @property
    def relayed(self) -> dict[str, bool]:
        """The relays that are kept, and whether they are connected."""
        return {relay: path.connected for relay, path in self.paths.items() if relay}

    def tunnels(self) -> Iterator[Tunnel]:
        for path in self.paths.values():
            yield from path.tunnels()

    def drop(self, relay: str) -> None:
        """A way is kept no more; what runs on it may end."""
        self.paths.pop(relay).end()

    def end(self) -> None:
        for path in self.paths.values():
            path.end()

    # What is known of it

    def estimates(self) -> dict[str, Estimate]:
        """What is measured of each way, as it counts for the choice among them.

        That a region does not serve, though it answers probes, says nothing about a way, where
        all of them end at one core; where it has several, another one may do better.
        """
        found = {relay: e for relay, p in self.paths.items() if (e := p.estimate) is not None}
        stalled = [estimate for estimate in found.values() if estimate.state == "stalled"]
        others = any(estimate.state in UP for estimate in found.values())
        self.stalled = ""
        if stalled and (self.cores < 2 or not others):
            self.stalled = stalled[0].why or "it has work and gets nowhere"
            found = {relay: _alive(estimate) for relay, estimate in found.items()}
        return found

    def note_queue(self, queue_ms: float, now: float) -> None:
        """The region said that a request waits so long there."""
        if not queue_ms >= 0.0:  # or no number
            return
        before = self.queue_ms(now)
        self._queue_ms = before + QUEUE_WEIGHT * (min(queue_ms, QUEUE_MAX_MS) - before)
        self._queue_at = now

    def queue_ms(self, now: float) -> float:
        """How long requests wait there, as far as it is known; what is old counts for less."""
        age_s = max(0.0, now - self._queue_at)
        return self._queue_ms * 0.5 ** (age_s / QUEUE_HALF_LIFE_S) if self._queue_ms else 0.0


def _alive(estimate: Estimate) -> Estimate:
    return estimate if estimate.state != "stalled" else replace(estimate, state="up")


def report(road: Road, view: PathView, epoch_s: float, doubted: str) -> PathReport:
    """What a heartbeat tells of one way; `epoch_s` is the Unix time when the clock was at 0, and
    `doubted` why the region is not asked though it is reached."""
    path = road.paths[view.relay]
    estimate = path.estimate
    if estimate is None:
        return PathReport(road.region, view.relay, up=False, state="waiting")
    cores = _cores(road.direct) if path is road.direct else ""
    said = (doubted if view.up else "", road.found.why.get(view.relay, ""), cores)
    return PathReport(
        region=road.region,
        relay=view.relay,
        up=view.up,
        state=estimate.state,
        rtt_ms=view.rtt_ms,
        extra_ms=view.extra_ms,
        measured_rtt_ms=estimate.rtt_ms,
        jitter_ms=estimate.jitter_ms,
        loss_out=estimate.loss_out,
        loss_back=estimate.loss_back,
        since_s=estimate.since_s + epoch_s,
        why="; ".join(part for part in said if part),
        exchanges=path.open_exchanges,
    )


def _cores(direct: Replicas) -> str:
    """What is to be said of a region's cores, where not all of them are asked."""
    if not direct.several:
        return ""
    said = [f"{direct.live} of {direct.kept} cores"] if direct.live < direct.kept else []
    alone = direct.left_alone()
    return "; ".join(said + [f"{core} is left alone ({why})" for core, why in alone.items()])


class Through:
    """A `Via` that goes through whichever tunnel is the direct one to the relay at the time."""

    def __init__(self, relay: str, roads: Mapping[str, Road]) -> None:
        self._relay = relay
        self._roads = roads

    async def bind(self, region: str, turn: int) -> Bound:
        """As `Tunnel.bind`; `PathDown` also where the relay is no region any more."""
        road = self._roads.get(self._relay)
        if road is None or road.direct.tunnel is None:
            raise PathDown(self._relay, "this edge has no tunnel to it")
        return await road.direct.tunnel.bind(region, turn)
