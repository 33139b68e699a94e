"""The server's half of delta xDS for one stream of one node, without a socket.

At most one response is unacknowledged, so that nothing queues up: whatever is published
meanwhile, the node's next response goes straight from what it holds to the newest snapshot.

Caller's duties: hand every request to `receive`; whenever something was received or published,
ask `next_response` and send what it returns, until it returns None.
"""

from __future__ import annotations

from envoy.service.discovery.v3 import discovery_pb2 as discovery
from msgspec import Struct

from control_plane.discovery.deltas import NOTHING, Deltas, Encoded, Held, notice, tail
from control_plane.discovery.directed import Directed
from control_plane.discovery.directing import DirectiveChannel, DirectiveNack
from control_plane.discovery.errors import InvalidSubscription
from control_plane.rollout_record import RolloutRecord
from runtime.identity import Principal
from topology.wire import codec
from topology.wire.subscription import HELD_REVISION, Origin

# A node that comes from a fresher replica is not sent back in time: it waits this long for this
# replica to catch up. After that this replica's word counts (the store was restored, say).
CATCH_UP_S = 2.0
_REASON_CHARACTERS = 2_000
_MAX_UNSUPPORTED = 8
_MAX_HELD = 100_000  # names that a node may say it holds


class Nack(Struct, frozen=True):
    """A response that the node refused."""

    revision: int
    reason: str
    at_s: float  # Unix time


class _InFlight(Struct, frozen=True):
    nonce: str
    held: Held  # what the node holds once it accepts
    revision: int
    sent_s: float
    delivers: bool  # False: a notice, which changes nothing


class Session:
    """`now_s` is a monotonic time, `wall_s` Unix time, both in seconds."""

    def __init__(
        self,
        node_id: str,
        principal: Principal,
        first: discovery.DeltaDiscoveryRequest,
        deltas: Deltas,
        now_s: float,
        wall_s: float,
        directed: Directed | None = None,
    ) -> None:
        self.node_id = node_id
        self.principal = principal
        self.connected = True
        self.since_s = wall_s
        self.acked_revision = 0
        self.sent_revision = 0
        self.nack: Nack | None = None
        self.unsupported: dict[str, None] = {}
        if len(first.initial_resource_versions) > _MAX_HELD:
            raise InvalidSubscription(f"a node that holds more than {_MAX_HELD} resources")
        self._deltas = deltas
        self._held = deltas.recognise(dict(first.initial_resource_versions))
        self._held_revision = _held_revision(first)
        self._in_flight: _InFlight | None = None
        self._staging: RolloutRecord | None = None  # by which `_target` was chosen
        self._has_change = True
        self._refused = 0  # the token of the snapshot that it refused
        self._origin: Origin | None = None
        self._catch_up_until_s = now_s + CATCH_UP_S
        self._nonces = 0
        self._directive: DirectiveChannel | None = None
        if directed is not None:
            self._directive = DirectiveChannel(
                node_id, directed, self._next_nonce, self._catch_up_until_s
            )
        self._unanswered: list[discovery.DeltaDiscoveryResponse] = []
        self._subscribed = False
        self.receive(first, wall_s)

    def receive(self, request: discovery.DeltaDiscoveryRequest, wall_s: float) -> None:
        """A subscription, an ACK or a NACK. Raises `InvalidSubscription`."""
        if request.type_url == codec.DIRECTIVE_TYPE_URL and self._directive is not None:
            self._directive.receive(request, wall_s)
            return
        if request.type_url != codec.TYPE_URL:
            self._answer_unsupported(request)
            return
        if request.response_nonce:
            self._answered(request, wall_s)
        self._check_names(request)
        self._subscribed = True

    def leave(self, wall_s: float) -> None:
        """The stream is over; what is remembered of it is small."""
        self.connected = False
        self.since_s = wall_s
        self._held = NOTHING
        self._in_flight = None
        if self._directive is not None:
            self._directive.leave()

    def directive_changed(self) -> None:
        """The director tells this node something new."""
        if self._directive is not None:
            self._directive.changed()

    def next_response(self, origin: Origin, now_s: float) -> bytes | None:
        """What to send now, serialised, or None."""
        if self._unanswered:
            return bytes(self._unanswered.pop(0).SerializeToString())
        response = self._next_resources(origin, now_s)
        if response is None and self._directive is not None:
            response = self._directive.next_response(origin, now_s)
        return response

    def _next_resources(self, origin: Origin, now_s: float) -> bytes | None:
        if self._in_flight is not None or not self._subscribed:
            return None
        target = self._target()
        behind = self._held.token != target.token or self._held_revision != target.revision
        if behind and self._refused != target.token:
            if target.revision >= self._held_revision or self._may_go_back(origin, now_s):
                return self._send(target, target.revision, origin, now_s, delivers=True)
            if self._origin is None and origin.stale_since_s is None:
                return None  # soon caught up; meanwhile the node believes its last replica
        if origin == self._origin:
            return None
        return self._send(self._held, self._held_revision, origin, now_s, delivers=False)

    def unanswered_for_s(self, now_s: float) -> float:
        """How long the response in flight has been out; 0 where there is none."""
        waited_s = now_s - self._in_flight.sent_s if self._in_flight else 0.0
        return max(waited_s, self._directive.unanswered_for_s(now_s) if self._directive else 0.0)

    @property
    def acked_directive(self) -> int:
        """The number of the newest directive that the node is known to hold; 0: none."""
        return self._directive.acked_number if self._directive else 0

    @property
    def directive_nack(self) -> DirectiveNack | None:
        """The directive that the node refused, if it accepted none since."""
        return self._directive.nack if self._directive else None

    @property
    def held_revision(self) -> int:
        """The revision of the snapshot that the node holds, as far as it said."""
        return self._held_revision

    @property
    def waits_for_catch_up(self) -> bool:
        if self._directive is not None and self._directive.waits_for_catch_up:
            return True
        return self._target().revision < self._held_revision

    @property
    def behind(self) -> bool:
        """The node has yet to acknowledge what it is to have."""
        target = self._target()
        return self._held.token != target.token or self._held_revision != target.revision

    @property
    def staged(self) -> bool:
        """What the node has is the snapshot of before the rollout that is under way."""
        before = self._deltas.before
        if before is None:
            return False
        if self._target() is before:
            return True
        return self._held.token == before.token and self._refused != self._deltas.current.token

    def _target(self) -> Encoded:
        rollout = self._deltas.rollout
        if rollout is not self._staging:
            self._staging = rollout
            self._has_change = rollout is None or rollout.has(str(self.principal))
        before = self._deltas.before
        return self._deltas.current if self._has_change or before is None else before

    def _next_nonce(self) -> int:
        self._nonces += 1
        return self._nonces

    def _may_go_back(self, origin: Origin, now_s: float) -> bool:
        return origin.stale_since_s is None and now_s >= self._catch_up_until_s

    def _send(
        self, held: Held, revision: int, origin: Origin, now_s: float, *, delivers: bool
    ) -> bytes:
        nonce = f"{revision}.{self._next_nonce()}"
        body = self._deltas.body(self._held, self._target()) if delivers else notice(revision)
        self._in_flight = _InFlight(nonce, held, revision, now_s, delivers)
        self._origin = origin
        self.sent_revision = revision
        return body + tail(nonce, origin)

    def _answered(self, request: discovery.DeltaDiscoveryRequest, wall_s: float) -> None:
        sent = self._in_flight
        if sent is None or request.response_nonce != sent.nonce:
            return  # an answer to something older: xDS says to ignore it
        self._in_flight = None
        if request.HasField("error_detail"):
            self.nack = Nack(
                sent.revision, request.error_detail.message[:_REASON_CHARACTERS], wall_s
            )
            self._refused = sent.held.token
            return
        self._held = sent.held
        self._held_revision = self.acked_revision = sent.revision
        if sent.delivers:
            self.nack = None

    def _check_names(self, request: discovery.DeltaDiscoveryRequest) -> None:
        named = [name for name in request.resource_names_subscribe if name != "*"]
        if named or request.resource_names_unsubscribe:
            raise InvalidSubscription(
                "this server serves all resources to each subscriber, not single ones",
                hint="subscribe to '*'",
            )

    def _answer_unsupported(self, request: discovery.DeltaDiscoveryRequest) -> None:
        """A type that is not served here exists nowhere: say so once, and note it for people."""
        if request.response_nonce or request.type_url in self.unsupported:
            return
        if len(self.unsupported) >= _MAX_UNSUPPORTED:
            raise InvalidSubscription(
                f"{request.type_url[:100]!r} is one type too many that is not served here",
                hint=f"this server serves {codec.TYPE_URL}",
            )
        self.unsupported[request.type_url[:200]] = None
        response = discovery.DeltaDiscoveryResponse(
            type_url=request.type_url,
            nonce=f"0.{self._next_nonce()}",
            system_version_info="0",
            removed_resources=[n for n in request.resource_names_subscribe if n != "*"],
        )
        self._unanswered.append(response)


def _held_revision(first: discovery.DeltaDiscoveryRequest) -> int:
    text: str = first.node.metadata.fields[HELD_REVISION].string_value
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
