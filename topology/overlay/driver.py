"""Steps one QUIC connection on an event loop: receive, step, send, re-arm the timer.

It transmits once per event-loop turn, not once per write or per datagram: whoever changes the
connection marks it, and one flush follows when the turn's work is done. That is what makes
aioquic fast enough (docs/performance.md). The timer is re-armed only when it must fire earlier.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from aioquic.quic.events import QuicEvent

from runtime.clock import Clock
from topology.overlay.connection import OverlayConnection
from topology.overlay.udp import Address

Transmit = Callable[[list[bytes], Address], None]


class Driver:
    """Owns a connection's flush and timer. `on_event` gets each of aioquic's events, and
    `on_failure` whatever went wrong in it or in aioquic: the connection is to be given up."""

    __slots__ = (
        "_at",
        "_clock",
        "_closed",
        "_loop",
        "_marked",
        "_on_event",
        "_on_failure",
        "_timer",
        "_transmit",
        "quic",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        quic: OverlayConnection,
        transmit: Transmit,
        on_event: Callable[[QuicEvent], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self.quic = quic
        self._loop = loop
        self._clock = clock
        self._transmit = transmit
        self._on_event = on_event
        self._on_failure = on_failure
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0
        self._marked = False
        self._closed = False

    def mark(self) -> None:
        """Something is to be sent: flush once at the end of this turn."""
        if not self._marked and not self._closed:
            self._marked = True
            self._loop.call_soon(self._flush)

    def receive(self, datagrams: Sequence[bytes], address: Address, now: float) -> None:
        """Take datagrams in; `step` follows when there are no more."""
        receive = self.quic.receive_datagram
        try:
            for datagram in datagrams:
                receive(datagram, address, now)
        except Exception as error:  # noqa: BLE001 - whatever a packet did ends its connection
            self._on_failure(error)

    def step(self) -> None:
        """Hand out events, then mark. Call after datagrams were received."""
        self._hand_out()
        self.mark()

    def flush_now(self) -> None:
        """Send what is pending without waiting for the turn to end."""
        self._flush()

    def stop(self) -> None:
        """No more flushes, no more timers."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hand_out(self) -> None:
        try:
            event = self.quic.next_event()
            while event is not None:
                self._on_event(event)
                event = self.quic.next_event()
        except Exception as error:  # noqa: BLE001 - as above
            self._on_failure(error)

    def _flush(self) -> None:
        self._marked = False
        if self._closed:
            return
        now = self._clock.now()
        try:
            self._send(now)
        except Exception as error:  # noqa: BLE001 - as above
            self._on_failure(error)
            return
        self._hand_out()  # connection ids that were issued
        self._arm(now)

    def _send(self, now: float) -> None:
        pairs = self.quic.datagrams_to_send(now)
        if pairs:
            address = pairs[0][1]
            run: list[bytes] = []
            for data, to in pairs:
                if to != address:  # a path being probed
                    self._transmit(run, address)
                    address, run = to, []
                run.append(data)
            self._transmit(run, address)

    def _arm(self, now: float) -> None:
        at = self.quic.get_timer()
        if at is None or self._closed:
            return
        if self._timer is not None:
            if self._at <= at:
                return
            self._timer.cancel()
        self._at = at
        # Event loops round to a millisecond; a timer that is early would only be set again.
        self._timer = self._loop.call_later(max(0.0, at - now) + 0.0005, self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = self._clock.now()
        at = self.quic.get_timer()
        if at is None or self._closed:
            return
        if at > now:
            self._arm(now)
            return
        try:
            self.quic.handle_timer(now)
        except Exception as error:  # noqa: BLE001 - as above
            self._on_failure(error)
        else:
            self.step()
