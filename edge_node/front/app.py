"""The RSGI application that granian calls: one task per request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from random import Random
from typing import Any

from edge_node.admission.entry import Entry
from edge_node.admission.quota import Quotas
from edge_node.cache.exact import ExactCache
from edge_node.figures import Figures, FirstToken
from edge_node.forward.choice import Choice
from edge_node.forward.forwarder import Forwarder
from edge_node.forward.upstream import Upstream
from edge_node.front.auth import Keyring
from edge_node.front.call import Call, ClientGone, RequestIds
from edge_node.front.chat import Chat
from edge_node.front.pages import CHAT, Pages
from edge_node.inflight import Cause, Flights
from edge_node.serving import Serving
from runtime import logs
from runtime.clock import Clock
from runtime.metrics import Metrics, Sample
from topology.directive import Directive
from topology.snapshot import Snapshot
from topology.wire.chat import ChatError

log = logs.get("front")

DEFAULT_BODY_TIMEOUT_S = 10.0


class EdgeApp:
    """One edge worker's application.

    `now` is the event loop's clock. Call `use` with a snapshot before and whenever there is a
    new one; until then requests are answered with 503.
    """

    def __init__(
        self,
        edge: str,
        upstream: Upstream,
        clock: Clock,
        rng: Random,
        now: Callable[[], float],
        *,
        body_timeout_s: float = DEFAULT_BODY_TIMEOUT_S,
        access_log: bool = False,
    ) -> None:
        self.figures = Figures()
        self.flights = Flights()
        self.metrics = Metrics()
        choice = Choice(edge, upstream.views, clock, rng)
        self.quotas = Quotas(rng)
        self.serving = Serving(edge, Keyring(), choice, self.quotas)
        self._now = now
        self.forwarder = Forwarder(upstream, choice, self.figures, now, rng)
        self.entry = Entry(self.forwarder, rng)
        self._chat = Chat(
            self.serving, self.forwarder, self.flights, self.figures, clock, self.entry,
            body_timeout_s,
        )  # fmt: skip
        self.pages = Pages(self.serving, upstream.views, self.metrics.expose)
        self._ids = RequestIds(rng)
        self._edge = edge
        self._access_log = access_log
        self.edge_models = self._chat.models
        self.metrics.watch(self.figures.samples)
        self.metrics.watch(self.forwarder.samples)
        self.metrics.watch(self.entry.samples)
        self.metrics.watch(self._samples)
        self.metrics.watch(self._chat.sharing.samples)
        self.metrics.watch(lambda: self.quotas.samples(now()))
        self.metrics.watch(self.serving.staleness.samples)
        self.metrics.registry.register(FirstToken(lambda: self.figures.first_token))

    def use(self, snapshot: Snapshot) -> None:
        self.serving.use(snapshot)
        if not self.serving.protects:
            log.warning(
                "protection is off: everything is forwarded, and nobody is refused",
                policy="overload.protect",
                revision=snapshot.revision,
            )
        self.forwarder.use(snapshot)
        self.entry.use(snapshot)
        self._chat.sharing.use(snapshot)
        self.quotas.use(snapshot, self._now())

    def direct(self, directive: Directive) -> None:
        """Follow what the director tells this node."""
        self.quotas.direct(directive, self._now())
        self.serving.use_directive(directive)

    def confirm(self) -> None:
        """A current replica stands behind snapshot and directive: see `Quotas.confirm`."""
        self.quotas.confirm(self._now())

    async def drain(self, grace_s: float) -> None:
        """Stop being ready; let what is under way finish for `grace_s`, then stop it."""
        self.pages.draining = True
        try:
            await asyncio.wait_for(self.flights.drained(), grace_s)
        except TimeoutError:
            log.warning("requests stopped by the shutdown", count=len(self.flights))
            self.flights.stop_all(Cause.SHUTDOWN)
            await self.flights.drained()

    async def __rsgi__(self, scope: Any, client: Any) -> None:
        call = Call(scope, client, self._edge, self._ids.next())
        try:
            if scope.path == CHAT and scope.method == "POST":
                await self._chat.serve(call)
            else:
                self.pages.serve(call, scope.method, scope.path)
        except ClientGone:
            pass  # the client has gone
        except Exception:  # a request's outermost edge
            log.exception("a request failed", path=scope.path, request_id=call.request_id)
            await self._broken(call)
        if self._access_log:
            log.debug(
                "request",
                method=scope.method,
                path=scope.path,
                status=call.status,
                request_id=call.request_id,
                own_id=call.own_id,
            )

    async def _broken(self, call: Call) -> None:
        text = "The edge failed to serve this request."
        # Where the reply had been sent, or nobody is there to get it, nothing is left to do.
        with contextlib.suppress(ClientGone, RuntimeError):
            await call.fail(ChatError(500, text, type="server_error", code="internal_error"))

    def _samples(self) -> list[Sample]:
        cache: ExactCache[Any, Any] = self.serving.cache
        return [
            Sample("tradewind_edge_in_flight", "Requests under way.", len(self.flights)),
            Sample("tradewind_edge_cache_bytes", "Bytes held by the cache.", cache.used_bytes),
            Sample("tradewind_edge_cache_max_bytes", "Its limit.", cache.max_bytes),
            Sample("tradewind_edge_cache_entries", "Answers in the cache.", len(cache)),
            Sample("tradewind_edge_cache_aliases", "Spellings that lead to one.", cache.aliases),
            Sample("tradewind_edge_cache_evicted_total", "Evicted for room.", cache.evicted),
            Sample("tradewind_edge_cache_expired_total", "Dropped as too old.", cache.expired),
            Sample("tradewind_edge_cache_refused_total", "Too large to keep.", cache.refused),
            Sample(
                "tradewind_edge_revision",
                "Revision of the configuration in force.",
                self.serving.snapshot.revision,
            ),
        ]
