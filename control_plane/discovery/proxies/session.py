"""The server's half of one proxy's stream, without a socket: state of the world, or delta.

At most one response per type is unanswered. Types go out in the order in which a proxy makes
before it breaks: clusters, their endpoints, listeners, routes; routes wait until the clusters
that they name are there, and a cluster stays until no routes name it.

Caller's duties: hand every request to `receive`; whenever something was received or published,
and when `waits` says so a moment later, ask `next_response` and send what it returns, until it
returns None.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2 as discovery

from control_plane.discovery.directing import DirectiveNack
from control_plane.discovery.errors import InvalidSubscription
from control_plane.discovery.proxies.node import Profile
from control_plane.discovery.proxies.subscription import (
    ALL,
    InFlight,
    Subscription,
    digest,
    to_wire,
)
from control_plane.discovery.proxies.translation import (
    CLUSTER,
    ENDPOINTS,
    LISTENER,
    ROUTES,
    TYPES,
    Bundle,
    Packed,
)
from control_plane.discovery.session import CATCH_UP_S, Nack
from runtime.identity import Principal

# A proxy that does not take up the endpoints of a new cluster gets its routes all the same.
WARM_S = 2.0
_REASON_CHARACTERS = 2_000
_MAX_UNSUPPORTED = 8


class ProxySession:
    """One stream. The public attributes are those of `control_plane.discovery.session.Session`;
    `now_s` is a monotonic time, `wall_s` Unix time, both in seconds."""

    def __init__(
        self,
        node_id: str,
        principal: Principal,
        profile: Profile,
        replica: str,
        now_s: float,
        wall_s: float,
        *,
        delta: bool,
    ) -> None:
        self.node_id = node_id
        self.principal = principal
        self.profile = profile
        self.connected = True
        self.since_s = wall_s
        self.acked_revision = 0
        self.sent_revision = 0
        self.nack: Nack | None = None
        self.unsupported: dict[str, None] = {}
        self.acked_directive = 0  # proxies are told none
        self.directive_nack: DirectiveNack | None = None
        self.staged = False  # what it has is of before the rollout that is under way
        self.waits = False  # for the proxy or for this replica: ask again within `WARM_S`
        self._delta = delta
        self._replica = replica
        self._types: dict[str, Subscription] = {}
        self._routed: frozenset[str] = frozenset()  # clusters that the routes it accepted name
        self._nonces = 0
        self._unknown: list[str] = []  # types to be answered
        self._unknown_names: dict[str, list[str]] = {}
        self._holds_staged = False
        self._came_with = 0  # the newest revision of what it had when it came
        self._catch_up_until_s = now_s + CATCH_UP_S
        self._waiting_since_s: float | None = None
        self._nacked: str = ""  # the type of `nack`

    def receive(self, request: Any, wall_s: float) -> None:
        """A subscription, an ACK or a NACK. Raises `InvalidSubscription`."""
        url = request.type_url
        if url not in TYPES:
            self._receive_unknown(request)
            return
        held = self._types.get(url)
        first = held is None
        if held is None:
            held = self._types[url] = Subscription()
        nonce = request.response_nonce
        stale = bool(nonce) and nonce != held.last_nonce
        repeated = bool(nonce) and not stale and held.in_flight is None
        if nonce:
            self._answered(url, held, request, wall_s)
        everything = first and url in (CLUSTER, LISTENER)  # what asking for nothing means
        if self._delta:
            held.ask_delta(request, first=first, everything=everything)
        elif not stale:
            held.ask_whole(request, first=first, everything=everything, repeated=repeated)
        if first:
            self._came_with = max(self._came_with, held.came_with)

    def leave(self, wall_s: float) -> None:
        """The stream is over; what is remembered of it is small."""
        self.connected = False
        self.since_s = wall_s
        self._types = {}

    def unanswered_for_s(self, now_s: float) -> float:
        """How long the oldest response has been out; 0 where none is."""
        sent = [s.in_flight.sent_s for s in self._types.values() if s.in_flight]
        return now_s - min(sent) if sent else 0.0

    def next_response(self, bundle: Bundle, now_s: float, *, stale: bool = False) -> bytes | None:
        """What to send now, serialised, or None. `stale`: this replica does not reach its store."""
        self.waits = False
        self.staged = bundle.staged or (self._holds_staged and not self._refuses(bundle))
        if self._unknown:
            return self._answer_unknown(self._unknown.pop(0))
        if self._would_go_back(bundle, now_s, stale=stale):
            return None
        for url in TYPES:
            held = self._types.get(url)
            if held is None or held.in_flight is not None:
                continue
            target = held.target(self._there(bundle, url))
            if held.settled(target):
                continue
            digested = digest(target)
            if held.take_known(target, digested) or held.is_refused(digested):
                continue
            if url == ROUTES and self._must_wait(bundle, now_s):
                continue
            return self._send(url, held, target, digested, bundle, now_s)
        self._note_settled(bundle)
        return None

    def _would_go_back(self, bundle: Bundle, now_s: float, *, stale: bool) -> bool:
        """A proxy that comes from a fresher replica keeps what it has, until this one has caught
        up; or in the end, if it reaches its store, because that was restored."""
        if bundle.revision >= self._came_with:
            return False
        if stale or now_s < self._catch_up_until_s:
            self.waits = not stale
            return True
        self._came_with = 0
        return False

    def _there(self, bundle: Bundle, url: str) -> Mapping[str, Packed]:
        """What there is of a type, with the clusters that only its old routes still name."""
        there = bundle.resources[url]
        outlived = self._named_by_routes() - bundle.clusters
        if url not in (CLUSTER, ENDPOINTS) or not outlived:
            return there
        return {**there, **{name: bundle.outlived(url, name) for name in sorted(outlived)}}

    def _named_by_routes(self) -> frozenset[str]:
        routes = self._types.get(ROUTES)
        sent = routes.in_flight if routes is not None else None
        return self._routed | sent.clusters if sent is not None else self._routed

    def _must_wait(self, bundle: Bundle, now_s: float) -> bool:
        """Whether the clusters that the routes name are not all ready at the proxy."""
        if self._ready_for_routes(bundle):
            self._waiting_since_s = None
            return False
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        clusters = self._types[CLUSTER]
        refused = clusters.in_flight is None and bool(clusters.refused)
        if not refused and now_s - self._waiting_since_s >= WARM_S:
            self._waiting_since_s = None
            return False
        self.waits = not refused
        return True

    def _ready_for_routes(self, bundle: Bundle) -> bool:
        clusters, endpoints = self._types.get(CLUSTER), self._types.get(ENDPOINTS)
        if clusters is None or not (clusters.wildcard or clusters.names):
            return True  # it has asked for routes first, as gRPC does
        target = clusters.target(self._there(bundle, CLUSTER))
        if not clusters.settled(target):
            return False
        if endpoints is None:
            return not target
        there = self._there(bundle, ENDPOINTS)
        return all(endpoints.held.get(name) == there[name].version for name in target)

    def _send(
        self,
        url: str,
        held: Subscription,
        target: dict[str, Packed],
        digested: str,
        bundle: Bundle,
        now_s: float,
    ) -> bytes:
        self._nonces += 1
        nonce = f"{bundle.revision}.{self._nonces}"
        write = self._delta_response if self._delta else self._whole_response
        response = write(url, held, target, bundle.revision)
        response.type_url = url
        response.nonce = nonce
        response.control_plane.identifier = self._replica
        clusters = bundle.clusters if url == ROUTES else frozenset()
        holds = {name: packed.version for name, packed in target.items()}
        revision = bundle.revision_of(url)
        held.in_flight = InFlight(nonce, holds, digested, revision, now_s, clusters)
        held.last_nonce = nonce
        held.owed = False
        self.sent_revision = bundle.revision
        return bytes(response.SerializeToString())

    def _whole_response(
        self, url: str, _held: Subscription, target: dict[str, Packed], revision: int
    ) -> Any:
        response = discovery.DiscoveryResponse(version_info=to_wire(digest(target), revision))
        for packed in target.values():
            response.resources.add(type_url=url, value=packed.value)
        return response

    def _delta_response(
        self, url: str, held: Subscription, target: dict[str, Packed], revision: int
    ) -> Any:
        response = discovery.DeltaDiscoveryResponse(system_version_info=str(revision))
        for name, packed in target.items():
            if held.held.get(name) == packed.version and name not in held.asked_anew:
                continue
            entry = response.resources.add(name=name, version=to_wire(packed.version, revision))
            entry.resource.type_url = url
            entry.resource.value = packed.value
        gone = dict.fromkeys(name for name in held.held if name not in target)
        gone |= {name: None for name in held.asked_anew if name not in target}
        held.asked_anew.clear()
        response.removed_resources.extend(gone)
        return response

    def _answered(self, url: str, held: Subscription, request: Any, wall_s: float) -> None:
        accepted = not request.HasField("error_detail")
        sent = held.answer(request.response_nonce, accepted=accepted)
        if sent is None:
            return  # an answer to something older: xDS says to ignore it
        if not accepted:
            reason = f"{url.rpartition('.')[2]}: {request.error_detail.message}"
            self.nack = Nack(sent.revision, reason[:_REASON_CHARACTERS], wall_s)
            self._nacked = url
            return
        if url == ROUTES:
            self._routed = sent.clusters
        if url == self._nacked:
            self.nack, self._nacked = None, ""

    def _note_settled(self, bundle: Bundle) -> None:
        """It holds the bundle's revision once it holds all that this has for it.

        But for a listener that it refused earlier: that comes of what the proxy says of itself,
        and of no revision, so it stays a complaint and holds nothing up.
        """
        if not self._types or self.waits:
            return
        whole = True
        for url, held in self._types.items():
            if held.settled(held.target(self._there(bundle, url))):
                continue
            whole = False
            if url != LISTENER or not 0 < held.refused_revision < bundle.revision:
                return
        self.sent_revision = self.acked_revision = bundle.revision
        self.staged = self._holds_staged = bundle.staged
        if whole:
            self.nack, self._nacked = None, ""

    def _refuses(self, bundle: Bundle) -> bool:
        return any(held.refused_revision >= bundle.revision for held in self._types.values())

    def _receive_unknown(self, request: Any) -> None:
        """A type that is not served here exists nowhere: say so once, and note it for people."""
        url = request.type_url[:200]
        if request.response_nonce or url in self.unsupported:
            return
        if len(self.unsupported) >= _MAX_UNSUPPORTED:
            raise InvalidSubscription(
                f"{url[:100]!r} is one type too many that is not served here",
                hint="this server serves " + ", ".join(TYPES),
            )
        self.unsupported[url] = None
        self._unknown.append(url)
        asked = request.resource_names_subscribe if self._delta else ()
        self._unknown_names[url] = [name for name in asked if name != ALL]

    def _answer_unknown(self, url: str) -> bytes:
        self._nonces += 1
        names = self._unknown_names.pop(url)
        response: Any
        if self._delta:
            response = discovery.DeltaDiscoveryResponse(
                system_version_info="0", removed_resources=names
            )
        else:
            response = discovery.DiscoveryResponse(version_info="0")
        response.type_url = url
        response.nonce = f"0.{self._nonces}"
        response.control_plane.identifier = self._replica
        return bytes(response.SerializeToString())
