"""The server of heartbeats: who keeps a stream here, what they say, and that it is registered.

A stream is authorised by its certificate, as in discovery. Each heartbeat is answered with how
the node stands with the registry, at once: the registry is written to beside it (see `upkeep`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from random import Random
from typing import Any

from control_plane.admission import Admission, Shares
from control_plane.directives.observed import CoreReport, RegionSeen
from control_plane.membership import heartbeat as heartbeats
from control_plane.membership.base import Registry, region_of_core
from control_plane.membership.errors import (
    Closing,
    HeartbeatsRefused,
    InvalidHeartbeat,
    NotAllowed,
    Replaced,
    Silent,
    TooMany,
)
from control_plane.membership.heartbeat import Heartbeat
from control_plane.membership.ladder import NodeLadder
from control_plane.membership.paths import NodePaths, told
from control_plane.membership.settings import MembershipSettings
from control_plane.membership.upkeep import Standing, Upkeep
from control_plane.peers import principal_of_call, speaks_for
from runtime import logs
from runtime.clock import Clock
from runtime.identity import IdentityError, Principal
from runtime.metrics import Sample
from topology.wire.gen.tradewind.v1 import membership_pb2 as pb
from topology.wire.gen.tradewind.v1 import membership_pb2_grpc

log = logs.get("membership")

ROLES = frozenset({"edge", "core"})

FRESH_INTERVALS = 3  # a heartbeat older than this says nothing any more
SOON_S = 0.25  # when a node shall come again that is not registered yet
FIRST_TIMEOUT_S = 10.0  # how long a stream may stay silent at its beginning
ADMISSION_WAIT_S = 3.0  # below the patience of `MembershipClientSettings.connect_timeout_ms`
BURST = 20.0  # heartbeats that one node may send at once, and
RATE_PER_S = 5.0  # how many it may go on with
WORKERS_MAX = 64  # of one edge, as its settings allow
STREAMS_MAX = 2 * WORKERS_MAX  # of one certificate: broken ones may linger beside their successors
ARRIVALS_PER_S = 10.0  # of one certificate
UNKNOWN_TOLD = 5  # regions that do not exist, named in an answer


class MembershipService(membership_pb2_grpc.MembershipServicer):
    """Use within one event loop: `start()`, `add_to` a `grpc.aio` server, and `await close()`
    before it. `regions` tells the regions that exist; without it any name is one."""

    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        settings: MembershipSettings | None = None,
        *,
        regions: Callable[[], Collection[str]] | None = None,
        rng: Random | None = None,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._settings = settings or MembershipSettings()
        self._regions = regions
        rate = self._settings.admissions_per_s
        self._admission = Admission(rate, rate, ADMISSION_WAIT_S)
        self._shares = Shares(STREAMS_MAX, ARRIVALS_PER_S)
        self._upkeep = Upkeep(registry, clock, rng or Random(), self._settings.concurrency)
        self._streams: dict[str, _Stream] = {}
        # What was said last, and what counts until then although the stream ended.
        self._said: dict[str, _Said] = {}
        self._heartbeats = self._refused = self._left = 0

    def start(self) -> None:
        self._upkeep.start()

    async def close(self) -> None:
        for stream in list(self._streams.values()):
            stream.end(Closing("this replica is shutting down"))
        await self._upkeep.close()

    def add_to(self, server: Any) -> None:
        """Register on a `grpc.aio` server."""
        membership_pb2_grpc.add_MembershipServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    def seen(self) -> dict[str, dict[str, RegionSeen]]:
        """Edge node -> region -> how it sees it, from heartbeats that are fresh."""
        return {node: said.heartbeat.regions for node, said in self._fresh() if said.role == "edge"}

    def paths(self) -> dict[str, NodePaths]:
        """Edge node -> its ways to each region, from heartbeats that are fresh."""
        return {node: said.paths for node, said in self._fresh() if said.role == "edge"}

    def ladders(self) -> dict[str, NodeLadder]:
        """Edge node -> where it stands on the ladder, from heartbeats that are fresh."""
        return {
            node: NodeLadder(said.name, said.wall_s, said.heartbeat.ladder)
            for node, said in self._fresh()
            if said.role == "edge"
        }

    def cores(self) -> dict[str, CoreReport]:
        """Core -> its load, from heartbeats that are fresh."""
        reports = (
            (node, said.heartbeat.report(said.name, said.wall_s))
            for node, said in self._fresh()
            if said.role == "core"
        )
        return {node: report for node, report in reports if report is not None}

    def samples(self) -> Iterable[Sample]:
        """Figures for Prometheus."""
        upkeep, status = self._upkeep, self._registry.status
        name = "tradewind_membership_"
        backend = {"backend": self._registry.backend}
        yield Sample(name + "registry_up", "The registry answers", status.available, backend)
        yield Sample(name + "members", "Members that are known", len(self._registry.members))
        yield Sample(name + "streams", "Nodes that keep a stream here", len(self._streams))
        registered = sum(s.registered for s in upkeep.nodes.values())
        yield Sample(name + "registered", "Of them, registered", registered)
        yield Sample(name + "pending", "Calls to the registry that wait", upkeep.pending)
        yield Sample(name + "heartbeats_total", "Heartbeats taken", self._heartbeats)
        yield Sample(name + "refused_total", "Streams refused or ended", self._refused)
        yield Sample(name + "left_total", "Nodes that said they leave", self._left)
        yield Sample(name + "registrations_total", "Members written", upkeep.registrations)
        yield Sample(name + "renewals_total", "Members renewed", upkeep.renewals)
        yield Sample(name + "lost_total", "Members that the registry lost", upkeep.lost)
        yield Sample(name + "failures_total", "Calls without an answer", upkeep.failures)

    # Streams

    async def Keep(self, request_iterator: AsyncIterator[Any], context: Any) -> None:  # noqa: N802
        # Before anything else: it tells the client that somebody listens.
        await context.send_initial_metadata(())
        try:
            await self._converse(request_iterator, context)
        except HeartbeatsRefused as refusal:
            self._refused += 1
            log.warning("heartbeats ended", peer=context.peer(), reason=str(refusal))
            await context.abort(refusal.code, str(refusal))

    async def _converse(self, requests: AsyncIterator[Any], context: Any) -> None:
        # Authorised after it was read, for the reason given in discovery's server.
        first = await _first(requests)
        principal = _authorise(context)
        _check_node(first.node_id, principal)
        heard = heartbeats.read(first)
        crowded = self._shares.arrive(str(principal), self._clock.now())
        if crowded:
            raise TooMany(crowded)
        try:
            await self._admit()
            await self._follow(principal, heard, requests, context)
        finally:
            self._shares.leave(str(principal))

    async def _follow(
        self, principal: Principal, heard: Heartbeat, requests: AsyncIterator[Any], context: Any
    ) -> None:
        stream = _Stream(heard.node, heard.incarnation, principal, self._clock.now())
        try:
            async with asyncio.timeout(None) as patience:
                stream.patience = patience
                self._enter(stream)
                await self._serve(stream, heard, requests, context)
        except TimeoutError as error:
            silent = Silent(f"nothing was heard of {stream.node} for {self._silence_s:g} s")
            raise stream.refusal or silent from error
        finally:
            self._leave(stream)

    async def _serve(
        self, stream: _Stream, heard: Heartbeat, requests: AsyncIterator[Any], context: Any
    ) -> None:
        while True:
            stream.wait(self._silence_s)
            await context.write(self._take(stream, heard))
            if heard.leaving:
                return
            message = await anext(requests, None)
            if message is None:
                return
            stream.count(self._clock.now())
            heard = heartbeats.read(message)
            if (heard.node, heard.incarnation) != (stream.node, stream.incarnation):
                raise InvalidHeartbeat(("node_id and incarnation: the same on the whole stream",))

    def _take(self, stream: _Stream, heard: Heartbeat) -> pb.HeartbeatReply:
        """Act on one heartbeat; returns the answer."""
        self._heartbeats += 1
        now_s, wall_s = self._clock.now(), self._clock.wall()
        role, known = stream.principal.role, self._known()
        name, notes = _place(stream.principal, known)
        if known is not None:
            notes += _unknown(heard.regions, known)
            heard = heard.of_regions(known)
        standing = self._upkeep.heard(heard.member(role, name, wall_s), heard.lease)
        stream.standing = standing
        interval_s = self._interval_s()
        if heard.leaving:
            self._left += 1
            stream.left = True
            self._said.pop(heard.node, None)
            self._upkeep.leaves(heard.node, standing)
        else:
            until_s = now_s + FRESH_INTERVALS * interval_s
            before = self._said.get(heard.node)
            paths = told(heard, name, wall_s, before.paths if before is not None else None)
            self._said[heard.node] = _Said(heard, role, name, wall_s, until_s, paths)
        soon = not standing.registered and self._registry.status.available
        return pb.HeartbeatReply(
            lease=standing.lease,
            ttl_s=self._registry.ttl_s,
            interval_s=min(SOON_S, interval_s) if soon else interval_s,
            registered=standing.registered,
            detail="; ".join([*([standing.detail] if standing.detail else []), *notes]),
        )

    async def _admit(self) -> None:
        wait_s = self._admission.reserve(self._clock.now())
        if wait_s is None:
            raise TooMany("too many nodes come at once", hint="try again, or another replica")
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    def _enter(self, stream: _Stream) -> None:
        earlier = self._streams.get(stream.node)
        if earlier is None and len(self._streams) >= self._settings.max_nodes:
            raise TooMany(
                f"{self._settings.max_nodes} nodes keep a stream here already",
                hint="try another replica",
            )
        self._streams[stream.node] = stream
        if earlier is not None:
            earlier.end(Replaced(f"{stream.node} opened another stream"))

    def _leave(self, stream: _Stream) -> None:
        if self._streams.get(stream.node) is not stream:
            return  # replaced, or never entered
        del self._streams[stream.node]
        if stream.standing is not None:
            self._upkeep.dropped(stream.node, stream.standing)
        log.info("node without heartbeats", node=stream.node, left=stream.left)

    # Times and names

    @property
    def _silence_s(self) -> float:
        return self._registry.ttl_s

    def _interval_s(self) -> float:
        """So that all nodes together stay below `heartbeats_per_s`, and each is renewed."""
        crowd_s = len(self._streams) / self._settings.heartbeats_per_s
        return min(max(self._settings.interval_s, crowd_s), self._registry.ttl_s / 3)

    def _known(self) -> Collection[str] | None:
        return self._regions() if self._regions is not None else None

    def _fresh(self) -> Iterable[tuple[str, _Said]]:
        now_s = self._clock.now()
        for node in [n for n, said in self._said.items() if said.until_s < now_s]:
            del self._said[node]
        return list(self._said.items())


class _Said:
    """The last heartbeat of a node, and until when it counts."""

    __slots__ = ("heartbeat", "name", "paths", "role", "until_s", "wall_s")

    def __init__(
        self,
        heartbeat: Heartbeat,
        role: str,
        name: str,
        wall_s: float,
        until_s: float,
        paths: NodePaths,
    ) -> None:
        self.heartbeat = heartbeat
        self.role = role
        self.name = name
        self.wall_s = wall_s
        self.until_s = until_s
        self.paths = paths


class _Stream:
    """One node's stream: how much it may still send, and how it is ended from outside."""

    def __init__(self, node: str, incarnation: str, principal: Principal, now_s: float) -> None:
        self.node = node
        self.incarnation = incarnation
        self.principal = principal
        self.standing: Standing | None = None
        self.left = False
        self.refusal: HeartbeatsRefused | None = None
        self.patience: asyncio.Timeout | None = None
        self._tokens = BURST
        self._counted_s = now_s

    def wait(self, seconds: float) -> None:
        """The node is to be heard, and to take its answer, within so long."""
        if self.patience is not None and self.refusal is None:
            self.patience.reschedule(asyncio.get_running_loop().time() + seconds)

    def end(self, refusal: HeartbeatsRefused) -> None:
        self.refusal = self.refusal or refusal
        if self.patience is not None and not self.patience.expired():  # else it ends already
            self.patience.reschedule(asyncio.get_running_loop().time())

    def count(self, now_s: float) -> None:
        """One more heartbeat came. Raises `TooMany`."""
        gained = (now_s - self._counted_s) * RATE_PER_S
        self._tokens = min(BURST, self._tokens + gained) - 1.0
        self._counted_s = now_s
        if self._tokens < 0:
            raise TooMany(f"{self.node} sends more than {RATE_PER_S:g} heartbeats per second")


async def _first(requests: AsyncIterator[Any]) -> Any:
    try:
        async with asyncio.timeout(FIRST_TIMEOUT_S):
            return await anext(requests)
    except (TimeoutError, StopAsyncIteration) as error:
        raise Silent("the stream began with no heartbeat") from error


def _authorise(context: Any) -> Principal:
    try:
        principal = principal_of_call(context)
    except IdentityError as error:
        raise NotAllowed(str(error)) from error
    if principal.role not in ROLES:
        raise NotAllowed(
            f"{principal} sends no heartbeats", hint=f"roles: {', '.join(sorted(ROLES))}"
        )
    return principal


def _check_node(node_id: str, principal: Principal) -> None:
    """Workers are numbers here, so that nobody fills the registry with names of its own."""
    worker = node_id.removeprefix(f"{principal}/")
    numbered = worker.isdecimal() and worker == str(int(worker[:4])) and int(worker) < WORKERS_MAX
    if not speaks_for(principal, node_id) or (node_id != str(principal) and not numbered):
        raise NotAllowed(
            f"node {node_id[:100]!r} with the certificate of {principal}",
            hint=f"node_id must be '{principal}', or '{principal}/<worker 0 to {WORKERS_MAX - 1}>'",
        )


def _place(principal: Principal, known: Collection[str] | None) -> tuple[str, list[str]]:
    """The EdgeSite's or Region's name that the node is of, and what is to be said about it."""
    if principal.role == "edge":
        return principal.name, []
    region = region_of_core(principal.name, known) if known is not None else None
    if region is not None:
        return region, []
    notes = [] if known is None else [f"no Region of this configuration has {principal}"]
    return principal.name.partition(".")[0], notes


def _unknown(regions: Iterable[str], known: Collection[str]) -> list[str]:
    names = sorted(r for r in regions if r not in known)
    if not names:
        return []
    more = f" and {len(names) - UNKNOWN_TOLD} more" if len(names) > UNKNOWN_TOLD else ""
    return [f"no such regions: {', '.join(names[:UNKNOWN_TOLD])}{more}"]
