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
from topology.cursor import URGENCY, Tier, cursor
from topology.wire.chat import ChatRequest

USERS_MOST = 4096  # whose places are remembered: to work one out takes 1 µs
NAME_MOST = 256  # characters: clients name users as they like, with as much as a body holds


class Asking:
    """Of one edge worker."""

    def __init__(self, serving: Serving, forwarder: Forwarder, clock: Clock) -> None:
        self._serving = serving
        self._forwarder = forwarder
        self._clock = clock
        self._cursors: dict[tuple[Tier, str, str], int] = {}
        self._number = self._window_s = 0.0  # of the window that they are of

    def of(self, call: Call, tenant: str, request: ChatRequest, body: bytes, look: bool) -> Ask:
        """`look`: an answer will do that is there already."""
        serving, forwarder = self._serving, self._forwarder
        spec = serving.snapshot.tenants[tenant]
        tier, user = spec.tier, request.user or call.address
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
            self._cursor(tier, tenant, user, serving.snapshot.policy.overload.user_window_s),
            forwarder.gate.answers.cost(request.model, len(body), request.max_tokens),
            look,
        )

    def _cursor(self, tier: Tier, tenant: str, user: str, window_s: float) -> int:
        """As `topology.cursor.cursor`, now."""
        now_s = self._clock.wall()
        number = now_s // window_s
        if number != self._number or window_s != self._window_s:
            self._number, self._window_s = number, window_s
            self._cursors.clear()
        found = self._cursors.get((tier, tenant, user))
        if found is None:
            found = cursor(tier, tenant, user, now_s, window_s)
            if len(user) <= NAME_MOST:
                if len(self._cursors) >= USERS_MOST:
                    self._cursors.clear()
                self._cursors[tier, tenant, user] = found
        return found
