"""A node's heartbeats: that it is there, how it is, and what it sees.

For edges and cores. Nothing of the node waits for it: without a control plane it tries one
replica after the other, for as long as it takes, and shows the next one the lease it had.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from importlib import metadata
from random import Random
from typing import Any

import grpc
import grpc.aio
import msgspec

from runtime import logs
from runtime.backoff import Backoff
from runtime.clock import Clock
from runtime.identity import Identity
from topology.paths import PathChange
from topology.routing import Views
from topology.wire import ladder_reports, path_reports
from topology.wire.channel import open_channel
from topology.wire.gen.tradewind.v1 import membership_pb2 as pb
from topology.wire.gen.tradewind.v1 import membership_pb2_grpc
from topology.wire.ladder_reports import StandingReport
from topology.wire.path_reports import PathReport

log = logs.get("membership")

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs leave it out

INTERVAL_MIN_S, INTERVAL_MAX_S = 0.1, 60.0  # whatever a replica says
URGENT_S = 0.25  # how soon news is told that others wait for; also the least time in between


class MembershipClientSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How patient a node is with its control plane."""

    connect_timeout_ms: int = 5_000  # TCP, TLS and the server's first sign of life
    reply_timeout_ms: int = 5_000  # for the answer to one heartbeat
    leave_timeout_ms: int = 1_000  # for the last one, when the node stops
    backoff_min_ms: int = 200
    backoff_max_ms: int = 10_000


class Report(msgspec.Struct, frozen=True):
    """What a node says of itself. `orca`: a core's load, as an OrcaLoadReport. `paths`: an edge's
    ways to each region in their order; `path_events`: how they changed, the newest last; `ladder`:
    where it stands, by tier."""

    healthy: bool
    draining: bool = False
    addresses: tuple[str, ...] = ()
    regions: Views = {}
    orca: bytes = b""
    paths: Sequence[PathReport] = ()
    path_events: Sequence[PathChange] = ()
    ladder: Sequence[StandingReport] = ()

    @property
    def urgent(self) -> object:
        """What others wait for: when it differs, the node does not wait for its next turn."""
        reached = {region: view.reachable for region, view in self.regions.items()}
        return self.healthy, self.draining, reached, self.path_events[-1:]


class MembershipStatus(msgspec.Struct, frozen=True):
    """How the node stands with the registry."""

    connected: bool  # a replica takes its heartbeats
    endpoint: str  # of the stream, or of the last attempt; "" before the first
    since_s: float  # Unix time of the last change of `connected`
    registered: bool  # the replica says so
    lease: int  # 0: none
    detail: str  # why it is not connected, or what the replica said


class _Lost(Exception):
    """The stream is over; the text says why."""


class MembershipClient:
    """Use within one event loop: `start()`, then `await close()`, which says that the node leaves.

    `report` is called on the loop, some times a second; it must be quick. `identity` is asked
    for each connection. `endpoints` are tried in a random order, one at a time.
    """

    def __init__(
        self,
        node_id: str,
        endpoints: Sequence[str],
        identity: Callable[[], Identity],
        report: Callable[[], Report],
        clock: Clock,
        rng: Random,
        settings: MembershipClientSettings | None = None,
    ) -> None:
        self._node_id = node_id
        self._endpoints = rng.sample(list(endpoints), len(endpoints))
        self._identity = identity
        self._report = report
        self._clock = clock
        self._rng = rng
        self._settings = settings or MembershipClientSettings()
        self._backoff = Backoff(
            self._settings.backoff_min_ms / 1e3, self._settings.backoff_max_ms / 1e3, rng.random
        )
        self._incarnation = f"{rng.getrandbits(64):016x}"
        self._version = _version()
        self._interval_s = 1.0
        self._leaving = asyncio.Event()
        self._status = MembershipStatus(
            connected=False,
            endpoint="",
            since_s=clock.wall(),
            registered=False,
            lease=0,
            detail="not connected yet",
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def status(self) -> MembershipStatus:
        return self._status

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_forever(), name="membership")

    async def close(self) -> None:
        """Say that the node leaves, where somebody listens, and stop. Takes a second at most."""
        if self._task is None:
            return
        self._leaving.set()
        if self._status.connected:
            await asyncio.wait([self._task], timeout=self._settings.leave_timeout_ms / 1e3)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_forever(self) -> None:
        attempt = 0
        while self._endpoints and not self._leaving.is_set():
            endpoint = self._endpoints[attempt % len(self._endpoints)]
            attempt += 1
            reason = await self._keep(endpoint)
            was_connected = self._status.connected
            self._update(connected=False, endpoint=endpoint, registered=False, detail=reason)
            if self._leaving.is_set():
                return
            delay_s = self._backoff.next_s()
            level = log.warning if was_connected else log.info
            level("no heartbeats", endpoint=endpoint, reason=reason, retry_in_s=round(delay_s, 2))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), delay_s)

    async def _keep(self, endpoint: str) -> str:
        """Keep a stream to one replica until it ends; returns why it did."""
        try:
            async with open_channel(endpoint, self._identity()) as channel:
                call = membership_pb2_grpc.MembershipStub(channel).Keep()  # type: ignore[no-untyped-call]
                try:
                    return await self._converse(call, endpoint)
                except asyncio.InvalidStateError:
                    # grpc.aio: the call ended while a request was being written.
                    return f"{(await call.code()).name}: {await call.details()}"
                finally:
                    call.cancel()
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.ABORTED, grpc.StatusCode.UNIMPLEMENTED):
                # Another process speaks for this node, or nobody there listens: not so soon.
                self._backoff.exhaust()
            return f"{error.code().name}: {error.details()}"
        except TimeoutError:
            return "no answer in time"
        except _Lost as lost:
            return str(lost)
        except Exception as error:  # the outermost edge: the node goes on
            log.exception("heartbeats failed", endpoint=endpoint)
            return repr(error)

    async def _converse(self, call: Any, endpoint: str) -> str:
        timeout_s = self._settings.connect_timeout_ms / 1e3
        told: frozenset[PathChange] = frozenset()  # over this stream
        while True:
            report, leaving = self._report(), self._leaving.is_set()
            news = [change for change in report.path_events if change not in told]
            async with asyncio.timeout(timeout_s):
                await call.write(self._heartbeat(report, news, leaving))
                reply = await call.read()
            told = frozenset(report.path_events)
            if reply is _EOF:
                code, details = await call.code(), await call.details()
                raise _Lost(f"{code.name}: {details or 'the stream ended'}")
            timeout_s = self._settings.reply_timeout_ms / 1e3
            self._note(endpoint, reply)
            if leaving:
                return "the node left"
            await self._rest(report)

    def _heartbeat(self, report: Report, news: Sequence[PathChange], leaving: bool) -> pb.Heartbeat:
        paths = path_reports.by_region(report.paths)
        return pb.Heartbeat(
            node_id=self._node_id,
            incarnation=self._incarnation,
            lease=self._status.lease,
            version=self._version,
            addresses=report.addresses,
            healthy=report.healthy,
            draining=report.draining,
            regions=[
                pb.RegionSeen(
                    region=region,
                    reachable=view.reachable,
                    rtt_ms=view.rtt_ms or 0.0,
                    queue_ms=min(view.queue_ms, path_reports.FIGURE_MAX_MS),
                    paths=path_reports.to_paths(paths.get(region, ())),
                )
                for region, view in report.regions.items()
            ],
            path_events=path_reports.to_events(news),
            ladder=ladder_reports.to_standings(report.ladder),
            orca=report.orca,
            leaving=leaving,
        )

    async def _rest(self, told: Report) -> None:
        """Wait for the next turn, or for news that cannot wait for it."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._interval_s * (0.9 + 0.2 * self._rng.random())
        while (left_s := until_s - loop.time()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), min(left_s, URGENT_S))
                return
            if self._report().urgent != told.urgent:
                return

    def _note(self, endpoint: str, reply: pb.HeartbeatReply) -> None:
        self._backoff.reset()
        # In this order, so that what is no number becomes the longest.
        self._interval_s = max(INTERVAL_MIN_S, min(INTERVAL_MAX_S, reply.interval_s))
        self._update(
            connected=True,
            endpoint=endpoint,
            registered=reply.registered,
            lease=reply.lease or self._status.lease,
            detail=reply.detail,
        )

    def _update(self, **changes: object) -> None:
        before = self._status
        after = msgspec.structs.replace(before, **changes)
        if after.connected != before.connected:
            after = msgspec.structs.replace(after, since_s=self._clock.wall())
            if after.connected:
                log.info("heartbeats taken", endpoint=after.endpoint)
        self._status = after


def _version() -> str:
    try:
        return metadata.version("tradewind")
    except metadata.PackageNotFoundError:  # run from a bare checkout
        return "unknown"
