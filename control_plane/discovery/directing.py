"""The director's word on one stream: when to send it to the node, and what the node holds of it.

At most one response is unacknowledged. A node that holds a newer word than ours comes from a
replica that is ahead of this one, and keeps it until we caught up. When that takes too long
although we follow the store, the store has been set back (restored from a backup, say): then what
the node holds is withdrawn, which no replica does that lags behind or misses its store.
"""

from __future__ import annotations

from collections.abc import Callable

from envoy.service.discovery.v3 import discovery_pb2 as discovery
from msgspec import Struct

from control_plane.discovery.deltas import tail
from control_plane.discovery.directed import Directed, withdrawal
from control_plane.discovery.errors import InvalidSubscription
from topology.wire.codec import DirectiveVersion
from topology.wire.subscription import Origin

_REASON_CHARACTERS = 2_000
_NONE = DirectiveVersion()


class DirectiveNack(Struct, frozen=True):
    """A directive that the node refused."""

    version: DirectiveVersion
    reason: str
    at_s: float  # Unix time


class _InFlight(Struct, frozen=True):
    nonce: str
    version: DirectiveVersion  # what the node holds once it accepts
    sent_s: float


class DirectiveChannel:
    """`next_nonce` numbers the responses of the stream; times are as in `Session`."""

    def __init__(
        self,
        node_id: str,
        directed: Directed,
        next_nonce: Callable[[], int],
        catch_up_until_s: float,
    ) -> None:
        self.nack: DirectiveNack | None = None
        self.subscribed = False
        self._node_id = node_id
        self._directed = directed
        self._next_nonce = next_nonce
        self._catch_up_until_s = catch_up_until_s
        self._held = _NONE
        self._acked_number = 0
        self._refused: DirectiveVersion | None = None  # _NONE: a withdrawal
        self._in_flight: _InFlight | None = None
        self._changed = False

    @property
    def acked_number(self) -> int:
        """The newest number whose directive the node is known to hold on this stream."""
        if not self.subscribed or self._changed or self._in_flight is not None:
            return self._acked_number
        if self._refused is not None or not self._directed.exists:
            return self._acked_number
        return self._directed.state.number

    @property
    def waits_for_catch_up(self) -> bool:
        return self._changed and self._is_ahead()

    def changed(self) -> None:
        """What the node is to be told is another thing now."""
        self._changed = True

    def unanswered_for_s(self, now_s: float) -> float:
        return now_s - self._in_flight.sent_s if self._in_flight else 0.0

    def leave(self) -> None:
        self._acked_number = self.acked_number
        self.subscribed = False
        self._in_flight = None

    def receive(self, request: discovery.DeltaDiscoveryRequest, wall_s: float) -> None:
        """A subscription, an ACK or a NACK. Raises `InvalidSubscription`."""
        if request.response_nonce:
            self._answered(request, wall_s)
        names = list(request.resource_names_subscribe)
        if (names and names != [self._node_id]) or request.resource_names_unsubscribe:
            raise InvalidSubscription(
                "a node is told its own directive, and no other", hint=f"name {self._node_id!r}"
            )
        if names and not self.subscribed:
            self.subscribed = self._changed = True
            held = request.initial_resource_versions.get(self._node_id, "")
            self._held = DirectiveVersion.parse(held)

    def next_response(self, origin: Origin, now_s: float) -> bytes | None:
        """What to send now, serialised, or None."""
        if not self._changed or not self.subscribed or self._in_flight is not None:
            return None
        if not self._directed.exists:
            return None
        if self._directed.holds(self._node_id, self._held):
            self._acknowledge(self._held)
            return None
        version = self._directed.version_for(self._node_id)
        if version == self._refused:
            self._changed = False
            return None
        if self._is_ahead():
            if self._refused == _NONE or not self._may_withdraw(origin, now_s):
                return None
            return self._send(withdrawal(self._node_id), _NONE, origin, now_s)
        return self._send(self._directed.body(self._node_id), version, origin, now_s)

    def _is_ahead(self) -> bool:
        return self._held.number > self._directed.state.number

    def _may_withdraw(self, origin: Origin, now_s: float) -> bool:
        fresh = self._directed.fresh and origin.stale_since_s is None
        return fresh and now_s >= self._catch_up_until_s

    def _send(self, body: bytes, version: DirectiveVersion, origin: Origin, now_s: float) -> bytes:
        nonce = f"d{version.number}.{self._next_nonce()}"
        self._in_flight = _InFlight(nonce, version, now_s)
        return body + tail(nonce, origin)

    def _answered(self, request: discovery.DeltaDiscoveryRequest, wall_s: float) -> None:
        sent = self._in_flight
        if sent is None or request.response_nonce != sent.nonce:
            return  # an answer to something older: xDS says to ignore it
        self._in_flight = None
        if request.HasField("error_detail"):
            reason = request.error_detail.message[:_REASON_CHARACTERS]
            self.nack = DirectiveNack(sent.version, reason, wall_s)
            self._refused = sent.version
            return
        self._acknowledge(sent.version)

    def _acknowledge(self, version: DirectiveVersion) -> None:
        self._held = version
        self._acked_number = version.number
        self._refused = None
        self.nack = None
        self._changed = not self._directed.holds(self._node_id, version)
