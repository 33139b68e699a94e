"""What an edge does without protection (`overload.protect: false`), for comparison alone.

Everything is forwarded at once, tried up to three times whatever that costs others, and carried
to its end whether anybody waits for it or not. Nothing is kept or shared, and no deadline counts.
"""

from __future__ import annotations

from edge_node.errors import Refused
from edge_node.figures import Figures
from edge_node.forward.attempt import Ask
from edge_node.forward.forwarder import Forwarder
from edge_node.front.call import Call, ClientGone
from edge_node.front.relay import Relay
from edge_node.inflight import Flight
from edge_node.serving import Serving
from topology.cursor import URGENCY
from topology.wire.chat import parse_request

DEADLINE_S = 3600.0
ATTEMPTS = 3


class Unprotected:
    """Of one edge worker."""

    def __init__(
        self, serving: Serving, forwarder: Forwarder, figures: Figures, relay: Relay
    ) -> None:
        self._serving = serving
        self._forwarder = forwarder
        self._figures = figures
        self._relay = relay

    async def answer(self, call: Call, flight: Flight, tenant: str, body: bytes) -> None:
        serving = self._serving
        request = parse_request(body)
        decision = serving.choice.decide(tenant, request.model)
        if decision.refusal:
            raise Refused(decision, tenant, request.model)
        flight.due(flight.started + DEADLINE_S)
        flight.detach()
        spec = serving.snapshot.tenants[tenant]
        ask = Ask(
            call.overlay_id,
            tenant,
            request.model,
            URGENCY[spec.tier],
            request.stream,
            body,
            ATTEMPTS,
            serving.silence_s,
            serving.snapshot.models[request.model].context_tokens,
            reuse=False,
        )
        attempts = self._forwarder.begin(ask, decision, flight)
        try:
            try:
                await self._relay.answer(call, flight, attempts, request)
            except ClientGone:
                if attempts.begun:
                    await attempts.pour(_hold)
        finally:
            attempts.close()
        self._figures.forwarded += 1


def _hold(_: str) -> None:
    """Nobody waits for it."""
