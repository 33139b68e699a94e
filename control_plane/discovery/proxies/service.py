"""The shell of the proxies' discovery: streams, timers and what is published. No policy.

Both methods of the aggregated discovery service end here for nodes whose role is `proxy`:
`add_to` registers the state-of-the-world one, and `converse_delta` takes over streams of the
delta one, which `control_plane.discovery.server` has begun to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from envoy.service.discovery.v3 import discovery_pb2 as discovery

from control_plane.admission import Admission, Shares
from control_plane.catalog import Catalog
from control_plane.directives.known import Directives
from control_plane.discovery import opening
from control_plane.discovery.errors import (
    NoAnswer,
    NothingToServe,
    StreamRefused,
    TooMany,
)
from control_plane.discovery.proxies.node import Profile, check_node_id, profile_of
from control_plane.discovery.proxies.session import WARM_S, ProxySession
from control_plane.discovery.proxies.translation import Bundle
from control_plane.discovery.proxies.translations import Translations
from control_plane.discovery.server import DiscoverySettings
from runtime import logs
from runtime.clock import Clock
from runtime.identity import Principal
from runtime.metrics import Sample

log = logs.get("proxies")

ROLE = "proxy"
SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
METHOD = "StreamAggregatedResources"
_OTHERS = f"state-of-the-world discovery is for the role {ROLE}; other nodes use delta"
STREAMS_PER_NODE = 64  # gRPC opens one for each name that it dials
# What one stream may ask: a proxy answers ten pushes a second of four types at the most, and asks
# for the endpoints of many clusters when it starts.
REQUESTS_PER_S = 100.0
REQUESTS_BURST = 2_000

_GONE: Any = grpc.aio.BaseError  # what gRPC raises where a call is over
_SWEEP_S = 1.0


class ProxyDiscovery:
    """Use within one event loop: `start()`, add to a server, and `await close()` before it."""

    def __init__(
        self,
        catalog: Catalog,
        directives: Directives,
        replica: str,
        clock: Clock,
        settings: DiscoverySettings,
    ) -> None:
        self._catalog = catalog
        self._directives = directives
        self._replica = replica
        self._clock = clock
        self._settings = settings
        self._admission = Admission(
            settings.admissions_per_s,
            settings.admission_burst,
            settings.admission_longest_wait_ms / 1e3,
        )
        self._shares = Shares(settings.streams_per_proxy, settings.arrivals_per_node_per_s)
        self._translations = Translations()
        self._open: Counter[str] = Counter()  # streams by node
        self._streams: dict[int, _Stream] = {}
        self._left: OrderedDict[str, ProxySession] = OrderedDict()
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._pushes = self._nacks = self._refused = 0

    def start(self) -> None:
        self._catalog.on_change(self._changed.set)
        self._directives.on_change(self._changed.set)
        self._changed.set()
        self._tasks = [
            asyncio.create_task(self._publish_forever(), name="proxies-publish"),
            asyncio.create_task(self._sweep_forever(), name="proxies-sweep"),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for stream in list(self._streams.values()):
            stream.end(NothingToServe("this replica is shutting down"))

    def add_to(self, server: Any) -> None:
        """Register the state-of-the-world method on a `grpc.aio` server."""
        handler = grpc.stream_stream_rpc_method_handler(
            self._serve_whole,
            request_deserializer=discovery.DiscoveryRequest.FromString,
            response_serializer=None,
        )
        handlers = grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler})
        server.add_generic_rpc_handlers((handlers,))

    @property
    def sessions(self) -> Iterable[ProxySession]:
        """Every proxy that is connected, and those remembered. Of several streams of one node,
        the one that is the worst off."""
        worst: dict[str, ProxySession] = {}
        for session in (stream.session for stream in self._streams.values()):
            known = worst.get(session.node_id)
            if known is None or _standing(session) < _standing(known):
                worst[session.node_id] = session
        yield from worst.values()
        yield from self._left.values()

    def samples(self) -> Iterable[Sample]:
        """Figures for Prometheus."""
        yield Sample("tradewind_proxies_streams", "Streams of proxies", len(self._streams))
        yield Sample("tradewind_proxies_pushes_total", "Responses sent to proxies", self._pushes)
        yield Sample("tradewind_proxies_nacks_total", "Responses proxies refused", self._nacks)
        yield Sample("tradewind_proxies_refused_total", "Streams not served", self._refused)

    async def converse_delta(
        self, first: Any, requests: AsyncIterator[Any], context: Any, principal: Principal
    ) -> None:
        """Serve a delta stream whose `first` request was read and whose peer is `principal`.
        Raises `StreamRefused`."""
        await self._converse(first, requests, context, principal, delta=True)

    async def _serve_whole(self, requests: AsyncIterator[Any], context: Any) -> None:
        # Before anything else: it tells the client that somebody listens.
        await context.send_initial_metadata(())
        try:
            timeout_s = self._settings.first_request_timeout_ms / 1e3
            first = await opening.first_request(requests, timeout_s)
            principal = opening.authorised(context, frozenset({ROLE}), _OTHERS)
            await self._converse(first, requests, context, principal, delta=False)
        except StreamRefused as refusal:
            self._refused += 1
            log.warning("stream ended", peer=context.peer(), reason=str(refusal))
            await context.abort(refusal.code, str(refusal))

    async def _converse(
        self,
        first: Any,
        requests: AsyncIterator[Any],
        context: Any,
        principal: Principal,
        *,
        delta: bool,
    ) -> None:
        node_id, profile = check_node_id(first.node.id, principal), profile_of(first.node)
        if not self._translations.published:
            self._publish()
        async with opening.admitted(principal, self._shares, self._admission, self._clock):
            await self._follow(node_id, principal, profile, first, requests, context, delta=delta)

    async def _follow(
        self,
        node_id: str,
        principal: Principal,
        profile: Profile,
        first: Any,
        requests: AsyncIterator[Any],
        context: Any,
        *,
        delta: bool,
    ) -> None:
        now_s, wall_s = self._clock.now(), self._clock.wall()
        session = ProxySession(
            node_id, principal, profile, self._replica, now_s, wall_s, delta=delta
        )
        session.receive(first, wall_s)
        stream = _Stream(session)
        number = self._enter(stream)
        reader = asyncio.create_task(self._read(requests, stream), name=f"ads-{node_id}")
        try:
            await self._write(context, stream)
        except StreamRefused as refusal:
            self._refused += 1
            self._leave(number)
            log.warning("stream ended", node=node_id, reason=str(refusal))
            await opening.end(context, refusal, principal, self._shares, asyncio.wait({reader}))
        finally:
            reader.cancel()
            self._leave(number)

    def _bundle(self, session: ProxySession) -> Bundle:
        return self._translations.bundle_for(session.profile, session.principal)

    def _enter(self, stream: _Stream) -> int:
        node_id = stream.session.node_id
        if len(self._streams) >= self._settings.max_nodes:
            raise TooMany(f"{self._settings.max_nodes} streams of proxies are open already")
        own = self._open[node_id]
        if own >= STREAMS_PER_NODE:
            raise TooMany(
                f"{node_id} has {own} streams open already",
                hint="give each process a node.id of its own, with `/<instance>` at its end",
            )
        number = next(self._numbers)
        self._streams[number] = stream
        self._open[node_id] += 1
        self._left.pop(node_id, None)
        log.info("proxy connected", node=node_id, flavour=stream.session.profile.flavour)
        return number

    def _leave(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is None:
            return  # already
        session = stream.session
        session.leave(self._clock.wall())
        log.info("proxy left", node=session.node_id)
        self._open[session.node_id] -= 1
        if self._open[session.node_id] > 0:
            return
        del self._open[session.node_id]
        self._left[session.node_id] = session
        self._left.move_to_end(session.node_id)
        while len(self._left) > self._settings.max_nodes:
            self._left.popitem(last=False)

    async def _read(self, requests: AsyncIterator[Any], stream: _Stream) -> None:
        session = stream.session
        try:
            async for request in requests:
                if stream.ended:
                    continue  # what comes after its end is passed over
                if stream.allowance.reserve(self._clock.now()) is None:
                    hint = "answer each response once"
                    raise TooMany("too many requests on one stream", hint=hint)
                earlier = session.nack
                session.receive(request, self._clock.wall())
                if session.nack is not None and session.nack is not earlier:
                    self._nacks += 1
                    reason, node = session.nack.reason, session.node_id
                    log.error("a proxy refused a resource", node=node, reason=reason)
                stream.wake()
            stream.end(None)
        except StreamRefused as refusal:
            stream.end(refusal)
            with contextlib.suppress(_GONE):
                async for _ in requests:
                    pass
        except asyncio.CancelledError:
            stream.end(None)
            raise
        except _GONE:
            stream.end(None)
        except Exception as error:  # the stream's outermost edge: one node's trouble is its own
            log.exception("reading from a proxy failed", node=session.node_id)
            stream.end(StreamRefused(f"reading failed: {error!r}"))

    async def _write(self, context: Any, stream: _Stream) -> None:
        session = stream.session
        while not stream.ended:
            stream.woken.clear()
            stale = self._catalog.view.stale_since_s is not None
            bundle, now_s = self._bundle(session), self._clock.now()
            response = session.next_response(bundle, now_s, stale=stale)
            if response is not None:
                self._pushes += 1
                await self._send(context, response)
                continue
            try:
                async with asyncio.timeout(WARM_S if session.waits else None):
                    await stream.woken.wait()
            except TimeoutError:
                continue
        if stream.refusal is not None:
            raise stream.refusal

    async def _send(self, context: Any, response: bytes) -> None:
        """Raises `NoAnswer`: who does not read is not waited for."""
        limit_s = self._settings.ack_timeout_ms / 1e3
        try:
            async with asyncio.timeout(limit_s):
                await context.write(response)
        except TimeoutError as error:
            raise NoAnswer(f"the proxy did not read for {limit_s:g} s") from error

    def _publish(self) -> None:
        """Raises `NothingToServe`: no configuration is not the same as an empty one."""
        view = self._catalog.view
        if not view.ready:
            raise NothingToServe("this replica has no configuration yet", hint="try another one")
        state, now_s = self._directives.state, self._clock.wall()
        self._translations.publish(view.snapshot, view.rollout, state, now_s)
        for stream in self._streams.values():
            stream.wake()

    async def _publish_forever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._until_expiry_s()):
                    await self._changed.wait()
            except TimeoutError:
                pass  # an override has expired
            self._changed.clear()
            try:
                self._publish()
            except NothingToServe:
                pass  # not yet; the catalog says when
            except Exception:  # the task's outermost edge: proxies keep what they have
                log.exception("translating for proxies failed")
            await asyncio.sleep(self._settings.debounce_ms / 1e3)

    def _until_expiry_s(self) -> float | None:
        """Until the next override expires; None: none will."""
        at_s = self._translations.next_expiry_s()
        return max(0.0, at_s - self._clock.wall()) if at_s is not None else None

    async def _sweep_forever(self) -> None:
        limit_s = self._settings.ack_timeout_ms / 1e3
        while True:
            await asyncio.sleep(_SWEEP_S)
            now_s = self._clock.now()
            for stream in list(self._streams.values()):
                if stream.session.unanswered_for_s(now_s) > limit_s:
                    stream.end(NoAnswer(f"no ACK and no NACK within {limit_s:g} s"))


class _Stream:
    """A session and what its writer waits for."""

    def __init__(self, session: ProxySession) -> None:
        self.session = session
        self.allowance = Admission(REQUESTS_PER_S, REQUESTS_BURST, 0.0)
        self.woken = asyncio.Event()
        self.ended = False
        self.refusal: StreamRefused | None = None

    def wake(self) -> None:
        self.woken.set()

    def end(self, refusal: StreamRefused | None) -> None:
        if not self.ended:
            self.ended = True
            self.refusal = refusal
            self.woken.set()


def _standing(session: ProxySession) -> tuple[bool, int]:
    """Sorts the worst first."""
    return session.nack is None, session.acked_revision
