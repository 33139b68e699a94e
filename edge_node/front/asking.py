"""A client's request as it is forwarded: what the region is told of tier, tenant and user.

All of it comes from the tenant's key and the configuration, none from headers: nobody can name a
tier or a place for itself.
"""

from __future__ import annotations

from edge_node.forward.attempt import Ask
from edge_node.forward.forwarder import Forwarder
from edge_node.front.call import Call
from edge_node.serving import Serving
from runtime.clock import Clock
from topology.cursor import URGENCY, cursor
from topology.wire.chat import ChatRequest


class Asking:
    """Of one edge worker."""

    def __init__(self, serving: Serving, forwarder: Forwarder, clock: Clock) -> None:
        self._serving = serving
        self._forwarder = forwarder
        self._clock = clock

    def of(self, call: Call, tenant: str, request: ChatRequest, body: bytes, look: bool) -> Ask:
        """`look`: an answer will do that is there already."""
        serving, forwarder = self._serving, self._forwarder
        spec = serving.snapshot.tenants[tenant]
        tier, user = spec.tier, request.user or call.address
        window_s = serving.snapshot.policy.overload.user_window_s
        return Ask(
            call.overlay_id,
            tenant,
            request.model,
            URGENCY[tier],
            request.stream,
            body,
            serving.attempts,
            serving.silence_s,
            serving.snapshot.models[request.model].context_tokens,
            tier == "vip" and forwarder.hedges,
            spec.weight,
            cursor(tier, tenant, user, self._clock.wall(), window_s),
            forwarder.gate.estimate(request.model, len(body), request.max_tokens),
            look,
        )
