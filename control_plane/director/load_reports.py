"""Load reports (LRS, envoy.service.load_stats.v3): what edges, and proxies, forward where.

Each replica takes those of the nodes that chose it, and smooths them, so that whoever directs
may take them as they are. A report that does not hold together ends its stream with a word;
nothing of it counts.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import grpc.aio
from envoy.service.load_stats.v3 import lrs_pb2
from msgspec import Struct

from control_plane.admission import Shares
from control_plane.directives.observed import ClassLoad, EdgeReport, RegionSeen
from control_plane.director.reported import (
    CLUSTERS_MAX,
    INTERVAL_MIN_S,
    BadReport,
    Counted,
    Reported,
    read,
)
from control_plane.peers import principal_of_call, speaks_for
from runtime import logs
from runtime.clock import Clock
from runtime.identity import IdentityError, Principal
from runtime.metrics import Sample

log = logs.get("load-reports")

SERVICE = "envoy.service.load_stats.v3.LoadReportingService"
METHOD = "StreamLoadStats"
ROLES = frozenset({"edge", "proxy"})

INTERVAL_S = 1.0
FRESH_S = 5.0  # a node that has reported nothing for longer counts no more
SMOOTHING_S = 3.0  # what was reported so long ago counts e times less than what is new

NODES_MAX = 20_000
STREAMS_MAX = 1_024  # of one certificate, which many proxies may share
ARRIVALS_PER_S = 10.0  # of one certificate
HELD_MAX = 2 * CLUSTERS_MAX  # names that count at once, of one node and kind
FIRST_REQUEST_S = 10.0
# Reports that come faster than asked for are work that nobody wants.
HASTE = 5  # times as many are borne, over as many seconds
_GONE = 1e-3  # per second: what has faded to less is forgotten


class NodeRefused(Exception):
    """A node may not report, or not now."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class _Rates(Struct):
    """Smoothed, per second; `first_token_ms` is a mean."""

    requests: float = 0.0
    errors: float = 0.0
    tokens: float = 0.0
    first_token_ms: float | None = None

    def add(self, new: Counted, interval_s: float, weight: float) -> None:
        self.requests += weight * (new.requests / interval_s - self.requests)
        self.errors += weight * (new.errors / interval_s - self.errors)
        self.tokens += weight * (new.tokens / interval_s - self.tokens)
        if new.first_tokens > 0:
            mean = new.first_token_ms / new.first_tokens
            held = self.first_token_ms
            self.first_token_ms = mean if held is None else held + weight * (mean - held)

    @property
    def gone(self) -> bool:
        return max(self.requests, self.errors, self.tokens) < _GONE


_NO_COUNT = Counted()


class _Node:
    """What one node reported, smoothed."""

    def __init__(self, node_id: str, edge: str) -> None:
        self.node_id = node_id
        self.edge = edge
        self.at_s: float | None = None  # wall clock, of the last report
        self.heard_s = 0.0  # monotonic
        self._classes: dict[str, _Rates] = {}
        self._regions: dict[str, _Rates] = {}
        self._parts: dict[tuple[str, str], _Rates] = {}  # class, region
        self._tenants: dict[str, _Rates] = {}

    def take(self, report: Reported, wall_s: float, now_s: float) -> None:
        first = self.at_s is None
        interval_s = report.interval_s or max(now_s - self.heard_s, INTERVAL_MIN_S)
        weight = 1.0 if first else 1.0 - math.exp(-interval_s / SMOOTHING_S)
        tables: tuple[tuple[dict[Any, _Rates], dict[Any, Counted]], ...] = (
            (self._classes, report.classes),
            (self._regions, report.regions),
            (self._parts, report.parts),
            (self._tenants, report.tenants),
        )
        if any(len(held.keys() | new.keys()) > HELD_MAX for held, new in tables):
            raise BadReport(f"more than {HELD_MAX} names in the last reports of {self.node_id}")
        for held, new in tables:
            _smooth(held, new, interval_s, weight)
        self.at_s, self.heard_s = wall_s, now_s

    def report(self) -> EdgeReport:
        parts: dict[str, dict[str, float]] = {}
        for (cls, region), rates in self._parts.items():
            parts.setdefault(cls, {})[region] = rates.tokens
        return EdgeReport(
            node=self.node_id,
            edge=self.edge,
            at_s=self.at_s or 0.0,
            demand={
                cls: ClassLoad(r.requests, r.tokens, r.errors, parts.get(cls, {}))
                for cls, r in self._classes.items()
            },
            # What a proxy counts says nothing about the reach of our edges.
            regions={
                region: RegionSeen(True, None, r.requests, r.errors, r.first_token_ms)
                for region, r in (self._regions.items() if self.edge else ())
            },
            tenants={tenant: r.requests for tenant, r in self._tenants.items()},
            load_at_s=self.at_s or 0.0,
        )


def _smooth(held: dict[Any, _Rates], new: dict[Any, Counted], dt_s: float, weight: float) -> None:
    for key in new.keys() - held.keys():
        held[key] = _Rates()
    for key, rates in list(held.items()):
        rates.add(new.get(key, _NO_COUNT), dt_s, weight)
        if rates.gone:
            del held[key]


class LoadReports:
    """Serves the reports of one replica's nodes; `edges` is what they said lately."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._nodes: dict[str, _Node] = {}
        self._streams: dict[str, object] = {}
        self._shares = Shares(STREAMS_MAX, ARRIVALS_PER_S)
        self._swept_s = clock.now()
        self._taken = self._refused = 0

    def add_to(self, server: Any) -> None:
        """Register on a `grpc.aio` server."""
        handler = grpc.stream_stream_rpc_method_handler(
            self._serve,
            request_deserializer=lrs_pb2.LoadStatsRequest.FromString,
            response_serializer=lrs_pb2.LoadStatsResponse.SerializeToString,
        )
        handlers = grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler})
        server.add_generic_rpc_handlers((handlers,))

    def edges(self) -> dict[str, EdgeReport]:
        """Node -> its report; only of nodes that reported within `FRESH_S`. A proxy's report
        names no edge."""
        now_s = self._clock.now()
        self._sweep(now_s)
        return {n: node.report() for n, node in self._nodes.items() if _is_fresh(node, now_s)}

    def samples(self) -> Iterable[Sample]:
        name = "tradewind_load_reports_"
        yield Sample(name + "nodes", "Nodes that report their load.", len(self._streams))
        yield Sample(name + "taken_total", "Load reports taken.", self._taken)
        yield Sample(name + "refused_total", "Streams ended for what they said.", self._refused)

    def _sweep(self, now_s: float) -> None:
        """Forget who is silent: now and then, as it looks at all of them."""
        if now_s - self._swept_s < FRESH_S:
            return
        self._swept_s = now_s
        for name in [n for n, node in self._nodes.items() if not _is_fresh(node, now_s)]:
            del self._nodes[name]

    async def _serve(self, requests: AsyncIterator[Any], context: Any) -> None:
        # Before anything else: it tells the client that somebody listens.
        await context.send_initial_metadata(())
        try:
            await self._converse(requests, context)
        except BadReport as bad:
            self._refuse(context, str(bad))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(bad))
        except NodeRefused as refused:
            self._refuse(context, str(refused))
            await context.abort(refused.code, str(refused))

    def _refuse(self, context: Any, reason: str) -> None:
        self._refused += 1
        log.warning("a stream of load reports ended", peer=context.peer(), reason=reason)

    async def _converse(self, requests: AsyncIterator[Any], context: Any) -> None:
        # Authorised after it was read: see discovery's server.
        first = await _first(requests)
        principal = _authorise(context)
        node_id = _node_id(principal, first.node.id)
        crowded = self._shares.arrive(str(principal), self._clock.now())
        if crowded:
            raise NodeRefused(grpc.StatusCode.RESOURCE_EXHAUSTED, crowded)
        try:
            await self._follow(principal, node_id, first, requests, context)
        finally:
            self._shares.leave(str(principal))

    async def _follow(
        self,
        principal: Principal,
        node_id: str,
        first: Any,
        requests: AsyncIterator[Any],
        context: Any,
    ) -> None:
        if node_id not in self._streams and (
            len(self._streams) >= NODES_MAX or len(self._nodes) >= 2 * NODES_MAX
        ):
            raise NodeRefused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many nodes report here")
        stream = self._streams[node_id] = object()  # a newer stream of the node outranks it
        edge = principal.name if principal.role == "edge" else ""
        haste = _Haste()
        try:
            self._take(node_id, edge, first)
            response = lrs_pb2.LoadStatsResponse(send_all_clusters=True)
            response.load_reporting_interval.FromMilliseconds(int(INTERVAL_S * 1e3))
            await context.write(response)
            async for request in requests:
                if self._streams.get(node_id) is not stream:
                    raise NodeRefused(grpc.StatusCode.ABORTED, f"{node_id} opened another stream")
                haste.check(self._clock.now())
                self._take(node_id, edge, request)
        finally:
            if self._streams.get(node_id) is stream:
                del self._streams[node_id]

    def _take(self, node_id: str, edge: str, request: Any) -> None:
        report = read(request)
        if report is None:
            return
        now_s = self._clock.now()
        self._sweep(now_s)
        node = self._nodes.get(node_id)
        if node is None or not _is_fresh(node, now_s):  # what it said before a silence is over
            node = self._nodes[node_id] = _Node(node_id, edge)
        node.take(report, self._clock.wall(), now_s)
        self._taken += 1


def _is_fresh(node: _Node, now_s: float) -> bool:
    return node.at_s is not None and now_s - node.heard_s <= FRESH_S


class _Haste:
    """Counts how many reports come in a while."""

    def __init__(self) -> None:
        self._since_s = -math.inf
        self._count = 0

    def check(self, now_s: float) -> None:
        if now_s - self._since_s > HASTE * INTERVAL_S:
            self._since_s, self._count = now_s, 0
        self._count += 1
        if self._count > HASTE * HASTE:
            raise NodeRefused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"more than {HASTE * HASTE} load reports in {HASTE * INTERVAL_S:g} s;"
                f" one in {INTERVAL_S:g} s is asked for",
            )


async def _first(requests: AsyncIterator[Any]) -> Any:
    try:
        async with asyncio.timeout(FIRST_REQUEST_S):
            return await anext(requests)
    except (TimeoutError, StopAsyncIteration) as error:
        raise NodeRefused(
            grpc.StatusCode.DEADLINE_EXCEEDED, "the stream began with no request"
        ) from error


def _authorise(context: Any) -> Principal:
    try:
        principal = principal_of_call(context)
    except IdentityError as error:
        raise NodeRefused(grpc.StatusCode.UNAUTHENTICATED, str(error)) from error
    if principal.role not in ROLES:
        roles = ", ".join(sorted(ROLES))
        raise NodeRefused(
            grpc.StatusCode.PERMISSION_DENIED,
            f"{principal} may not report load; roles that may: {roles}",
        )
    return principal


def _node_id(principal: Principal, told: str) -> str:
    """Whom a report counts for. Proxies name themselves as they like, under their principal."""
    if speaks_for(principal, told):
        return told
    if principal.role == "proxy":
        return f"{principal}/{told[:63]}"
    raise NodeRefused(
        grpc.StatusCode.PERMISSION_DENIED,
        f"node {told[:100]!r} with the certificate of {principal}: node.id must be"
        f" '{principal}', or '{principal}/<worker>'",
    )
