"""The discovery server: delta ADS for edges, cores and DNS.

A stream is authorised by its certificate, admitted at a bounded rate, and then follows what is
published. Publishing is debounced: the first change goes out at once, further ones together,
at most once every `debounce_ms`.

Every node gets every resource. Only edges need Tenants with their API-key hashes, and only DNS
needs Zones: sending each role what it needs is for later, and then for `Deltas`, one per role.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from typing import Annotated, Any, Protocol

import grpc
import msgspec
from envoy.service.discovery.v3 import discovery_pb2 as discovery

from control_plane.admission import Admission, Shares
from control_plane.catalog import Catalog
from control_plane.directives.known import Directives
from control_plane.discovery import opening
from control_plane.discovery.deltas import Deltas
from control_plane.discovery.directed import Directed
from control_plane.discovery.errors import (
    NoAnswer,
    NotAllowed,
    NothingToServe,
    Replaced,
    StreamRefused,
    TooMany,
)
from control_plane.discovery.session import Session
from control_plane.discovery.stream import NodeStream
from control_plane.peers import speaks_for
from runtime import logs
from runtime.clock import Clock
from runtime.identity import Principal
from runtime.metrics import Sample
from topology.wire.subscription import Origin

log = logs.get("discovery")

DNS = "dns"
ROLES = frozenset({"edge", "core", DNS})
PROXY = "proxy"  # the role of Envoy and gRPC clients, whose streams `proxies` serves
SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
METHOD = "DeltaAggregatedResources"

_SWEEP_S = 1.0

# What one stream may ask: a node answers ten pushes a second of two types at the most.
REQUESTS_PER_S = 50.0
REQUESTS_BURST = 200

Positive = Annotated[int, msgspec.Meta(gt=0)]


class DiscoverySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the discovery server."""

    debounce_ms: Positive = 100
    """The shortest time between two pushes; the first change after a pause goes out at once."""
    admissions_per_s: Positive = 500
    """How many nodes are taken in per second once `admission_burst` is used up."""
    admission_burst: Positive = 200
    """How many nodes may come at the same moment."""
    dns_admissions_per_s: Positive = 50
    """The same for geo-DNS alone, which never queues behind edges and cores: without it clients
    find no edge."""
    dns_admission_burst: Positive = 50
    """How many geo-DNS processes may come at the same moment."""
    admission_longest_wait_ms: Positive = 30_000
    """A node that would wait longer is told to try another replica."""
    first_request_timeout_ms: Positive = 10_000
    """How long a stream may stay silent at its beginning."""
    ack_timeout_ms: Positive = 30_000
    """A node that answers no response for this long loses its stream, and opens another."""
    streams_per_node: Positive = 256
    """How many processes of one node (one certificate) may be connected."""
    arrivals_per_node_per_s: Positive = 20
    """How often a node may open a stream, once it has opened `streams_per_node`."""
    streams_per_proxy: Positive = 2_048
    """How many streams of one certificate of the role `proxy`: gRPC opens one for each name."""
    max_nodes: Positive = 20_000
    """How many nodes may be connected; as many again are remembered after they left."""


class Proxies(Protocol):
    """Who serves streams of the role `proxy`; see `control_plane.discovery.proxies`."""

    @property
    def sessions(self) -> Iterable[Any]:
        """Each with the public attributes of `Session`."""

    async def converse_delta(
        self, first: Any, requests: AsyncIterator[Any], context: Any, principal: Principal
    ) -> None:
        """Serve a stream to its end; raises `StreamRefused`."""


class DiscoveryServer:
    """Serves one replica's catalog. `start()`, add to a server, and `await close()` before it."""

    def __init__(
        self,
        catalog: Catalog,
        replica: str,
        clock: Clock,
        settings: DiscoverySettings,
        directives: Directives | None = None,
    ) -> None:
        self._catalog = catalog
        self._directives = directives
        self._directed = Directed()
        self._replica = replica
        self._clock = clock
        self._settings = settings
        self._deltas = Deltas(catalog.view.snapshot)
        longest_wait_s = settings.admission_longest_wait_ms / 1e3
        self._admission = Admission(
            settings.admissions_per_s, settings.admission_burst, longest_wait_s
        )
        self._dns_admission = Admission(
            settings.dns_admissions_per_s, settings.dns_admission_burst, longest_wait_s
        )
        self._shares = Shares(settings.streams_per_node, settings.arrivals_per_node_per_s)
        self.proxies: Proxies | None = None
        self._streams: dict[str, NodeStream] = {}
        self._left: OrderedDict[str, Session] = OrderedDict()
        self._last_origin = Origin(replica, catalog.view.stale_since_s)
        self._published: Origin | None = None  # with which nodes were last told of anything
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._pushes = self._nacks = self._refused = 0

    def start(self) -> None:
        self._catalog.on_change(self._changed.set)
        self._changed.set()
        if self._directives is not None:
            self._directives.on_change(self._direct)
            self._direct()
        self._tasks = [
            asyncio.create_task(self._publish_forever(), name="discovery-publish"),
            asyncio.create_task(self._sweep_forever(), name="discovery-sweep"),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for stream in list(self._streams.values()):
            stream.end(NothingToServe("this replica is shutting down"))

    def add_to(self, server: Any) -> None:
        """Register on a `grpc.aio` server. Responses are bytes already: see `Deltas.body`."""
        handler = grpc.stream_stream_rpc_method_handler(
            self._serve,
            request_deserializer=discovery.DeltaDiscoveryRequest.FromString,
            response_serializer=None,
        )
        handlers = grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler})
        server.add_generic_rpc_handlers((handlers,))

    @property
    def revision(self) -> int:
        """The revision that is published to nodes now."""
        return self._deltas.current.revision

    @property
    def sessions(self) -> Iterable[Session]:
        """Every node connected, and those remembered."""
        yield from (stream.session for stream in self._streams.values())
        yield from self._left.values()
        if self.proxies is not None:
            yield from self.proxies.sessions

    def samples(self) -> Iterable[Sample]:
        """Figures for Prometheus."""
        sent = self.revision
        behind = sum(s.session.behind for s in self._streams.values())
        yield Sample("tradewind_discovery_nodes", "Connected nodes", len(self._streams))
        yield Sample("tradewind_discovery_nodes_behind", "Nodes without the newest", behind)
        yield Sample("tradewind_discovery_revision", "The revision served", sent)
        pushes = self._pushes + sum(s.pushes for s in self._streams.values())
        yield Sample("tradewind_discovery_pushes_total", "Responses sent", pushes)
        nacks = self._nacks + sum(s.nacks for s in self._streams.values())
        yield Sample("tradewind_discovery_nacks_total", "Responses refused by nodes", nacks)
        yield Sample("tradewind_discovery_refused_total", "Streams not served", self._refused)

    async def _serve(self, requests: AsyncIterator[Any], context: Any) -> None:
        # Before anything else: it tells the client that somebody listens.
        await context.send_initial_metadata(())
        try:
            await self._converse(requests, context)
        except StreamRefused as refusal:
            self._refused += 1
            log.warning("stream ended", peer=context.peer(), reason=str(refusal))
            await context.abort(refusal.code, str(refusal))

    async def _converse(self, requests: AsyncIterator[Any], context: Any) -> None:
        # Authorised after it was read: gRPC loses the status of a call that ends while the
        # client is still writing its first message.
        timeout_s = self._settings.first_request_timeout_ms / 1e3
        first = await opening.first_request(requests, timeout_s)
        principal = opening.authorised(context, ROLES | {PROXY} if self.proxies else ROLES)
        if self.proxies is not None and principal.role == PROXY:
            await self.proxies.converse_delta(first, requests, context, principal)
            return
        node_id = _check_node(first.node.id, principal)
        if self._published is None:
            self._publish()
        admission = self._dns_admission if principal.role == DNS else self._admission
        async with opening.admitted(principal, self._shares, admission, self._clock):
            await self._follow(node_id, principal, first, requests, context)

    async def _follow(
        self,
        node_id: str,
        principal: Principal,
        first: Any,
        requests: AsyncIterator[Any],
        context: Any,
    ) -> None:
        now_s, wall_s = self._clock.now(), self._clock.wall()
        directed = self._directed if self._directives is not None else None
        session = Session(node_id, principal, first, self._deltas, now_s, wall_s, directed)
        allowance = Admission(REQUESTS_PER_S, REQUESTS_BURST, 0.0)
        stream = NodeStream(session, context, self._clock, self._origin, allowance)
        self._enter(stream)
        try:
            await stream.run(requests)
        except StreamRefused as refusal:
            self._refused += 1
            self._leave(stream)
            log.warning("stream ended", node=node_id, reason=str(refusal))
            await opening.end(context, refusal, principal, self._shares, stream.gone())
        finally:
            stream.drop()
            self._leave(stream)

    def _enter(self, stream: NodeStream) -> None:
        node_id = stream.session.node_id
        earlier = self._streams.get(node_id)
        if earlier is None and len(self._streams) >= self._settings.max_nodes:
            raise TooMany(f"{self._settings.max_nodes} nodes are connected already")
        self._streams[node_id] = stream
        self._left.pop(node_id, None)
        if earlier is not None:
            earlier.end(Replaced(f"{node_id} opened another stream"))
        log.info("node connected", node=node_id, revision=stream.session.held_revision)

    def _leave(self, stream: NodeStream) -> None:
        session = stream.session
        if not session.connected:
            return  # already
        session.leave(self._clock.wall())
        self._pushes += stream.pushes
        self._nacks += stream.nacks
        if self._streams.get(session.node_id) is not stream:
            return  # replaced
        del self._streams[session.node_id]
        self._left[session.node_id] = session
        self._left.move_to_end(session.node_id)
        while len(self._left) > self._settings.max_nodes:
            self._left.popitem(last=False)
        log.info("node left", node=session.node_id)

    def _origin(self) -> Origin:
        """The same object until it changes: what is encoded of it is kept (`deltas.tail`)."""
        stale_since_s = self._catalog.view.stale_since_s
        if self._last_origin.stale_since_s != stale_since_s:
            self._last_origin = Origin(self._replica, stale_since_s)
        return self._last_origin

    def _publish(self) -> None:
        """Raises `NothingToServe`: no configuration is not the same as an empty one."""
        view = self._catalog.view
        if not view.ready:
            raise NothingToServe("this replica has no configuration yet", hint="try another one")
        origin = self._origin()
        news = self._deltas.publish(view.snapshot, view.rollout) or origin != self._published
        self._published = origin
        if not news:
            return
        for stream in self._streams.values():
            stream.wake()

    def _direct(self) -> None:
        """Tell the nodes whom the director's newest word concerns, and no others."""
        directives = self._directives
        if directives is None:
            return
        changed = self._directed.publish(directives.state, fresh=directives.followed)
        for stream in self._streams.values():
            if changed.concerns(stream.session.node_id):
                stream.session.directive_changed()
                stream.wake()

    async def _publish_forever(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                self._publish()
            except NothingToServe:
                pass  # not yet; the catalog says when
            except Exception:  # the task's outermost edge: nodes keep what they have
                log.exception("publishing failed")
            await asyncio.sleep(self._settings.debounce_ms / 1e3)

    async def _sweep_forever(self) -> None:
        limit_s = self._settings.ack_timeout_ms / 1e3
        while True:
            await asyncio.sleep(_SWEEP_S)
            now_s = self._clock.now()
            if self._directives is not None:
                self._directed.fresh = self._directives.followed
            for stream in list(self._streams.values()):
                if stream.session.unanswered_for_s(now_s) > limit_s:
                    stream.end(NoAnswer(f"no ACK and no NACK within {limit_s:g} s"))


def _check_node(node_id: str, principal: Principal) -> str:
    """The id of a node is its principal, and `/<worker>` where it has several processes."""
    if not speaks_for(principal, node_id):
        own = str(principal)
        raise NotAllowed(
            f"node {node_id[:100]!r} with the certificate of {own}",
            hint=f"node.id must be {own!r}, or {own + '/<worker>'!r}",
        )
    return node_id
