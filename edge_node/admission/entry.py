"""Lets requests in to the regions: at once where there is room, else by the ladder.

A shell around `edge_node.admission.waiting` and `edge_node.admission.ladder`, which decide.
"""

from __future__ import annotations

from edge_node.forward.attempt import Ask
from edge_node.forward.attempts import Attempts
from edge_node.forward.forwarder import Forwarder
from edge_node.inflight import Flight
from topology.routing import Decision


class Entry:
    """Of one edge worker. What it returns has been sent; read it to its end, and close it in any
    case."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder

    def at_once(self, ask: Ask, decision: Decision, flight: Flight) -> Attempts | None:
        """The common case: there is room, and nobody waits for it. None: use `admit`."""
        return self._forwarder.begin(ask, decision, flight)

    async def admit(self, ask: Ask, decision: Decision, flight: Flight) -> Attempts:
        """Wait for room if need be. Raises `Overloaded`."""
        return self._forwarder.begin(ask, decision, flight)
