"""One client's connection at the server: its streams become exchanges."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from aioquic.quic import events
from msgspec import Struct

from runtime import logs
from runtime.identity import Principal
from topology.overlay.connection import OverlayConnection
from topology.overlay.driver import Driver
from topology.overlay.errors import OverlayProtocolError
from topology.overlay.frames import Accept, End, Failure, Relay, Relayed, Request, Tokens
from topology.overlay.probe import Budget, Probe, decode, encode_echo
from topology.overlay.session import Arrival, ResetCode, ServerSession, reset_code

if TYPE_CHECKING:
    from topology.overlay.server import OverlayServer

log = logs.get("overlay")

FIRST_WINDOW_BYTES = 64 * 1024  # of a request: most fit, and a hostile peer reserves no more
_NEXT_WINDOW_BYTES = 2**20
_CHECK_UNSENT_BYTES = 2**20  # replies below it are not measured


class ServerExchange:
    """One request, and the way to answer it.

    `on_cancel` is called once, when the client gave up or its connection was lost before the
    answer ended; set it in `on_exchange`.
    """

    __slots__ = (
        "_connection", "_sent", "_session", "_stream_id", "body", "cancelled", "on_cancel", "peer",
        "request",
    )  # fmt: skip

    def __init__(
        self,
        connection: PeerConnection,
        stream_id: int,
        session: ServerSession,
        arrival: Arrival,
        peer: Principal,
    ) -> None:
        self.request: Request = arrival.request
        self.body = arrival.body
        self.peer = peer
        self.on_cancel: Callable[[], None] | None = None
        self.cancelled = False
        self._connection = connection
        self._stream_id = stream_id
        self._session = session
        self._sent = 0

    @property
    def ended(self) -> bool:
        """END or ERROR was sent."""
        return self._session.ended

    def send(self, frame: Accept | Tokens | End | Failure) -> None:
        """Send a frame; `End` and `Failure` finish the stream. After a cancel it does nothing.

        Raises `OverlayProtocolError` when the order of frames is wrong.
        """
        if self.cancelled:
            return
        data, fin = self._session.send(frame)
        self._sent += len(data)
        self._connection.reply(self._stream_id, data, fin, self._sent)

    def cancel(self) -> None:
        """The client is gone, or gave up: tell the handler once."""
        if not self.cancelled and not self._session.ended:
            self.cancelled = True
            if self.on_cancel is not None:
                self.on_cancel()


class RelayAsked:
    """A peer's RELAY, and the way to answer it."""

    __slots__ = ("_connection", "_session", "_stream_id", "cancelled", "host", "peer", "relay")

    def __init__(
        self,
        connection: PeerConnection,
        stream_id: int,
        session: ServerSession,
        relay: Relay,
        peer: Principal,
    ) -> None:
        self.relay = relay
        self.peer = peer
        address = connection.quic.get_peer_address()
        self.host = str(address[0]) if address else ""  # where its datagrams come from
        self.cancelled = False
        self._connection = connection
        self._stream_id = stream_id
        self._session = session

    def answer(self, frame: Relayed | Failure) -> None:
        """Once. After a cancel it does nothing."""
        if not self.cancelled:
            data, fin = self._session.send(frame)
            self._connection.reply(self._stream_id, data, fin, len(data))

    def cancel(self) -> None:
        """The client is gone, or gave up."""
        self.cancelled = True


class _Arriving(Struct):
    """A request that is not whole yet."""

    session: ServerSession
    began: float
    received: int = 0  # bytes
    granted: int = FIRST_WINDOW_BYTES


class PeerConnection:
    """A connection that a client opened, and its exchanges."""

    def __init__(self, server: OverlayServer, quic: OverlayConnection, now: float) -> None:
        self.quic = quic
        self.since = now
        self.up = False
        self.connection_ids: set[bytes] = set()
        self.exchanges: dict[int, ServerExchange | RelayAsked] = {}
        self.arriving: dict[int, _Arriving] = {}  # in the order of their beginning
        self._held = 0  # bytes of requests that are not whole
        self._server = server
        self._budget = Budget()  # of datagrams
        self._probes = self._echoes = 0  # that have arrived, and that were sent
        self._probed = -1  # the newest probe
        quic.on_datagram = self._datagram
        self.driver = Driver(
            server.loop, server.clock, quic, server.transmit, self._event, self._failed
        )

    # From exchanges

    def reply(self, stream_id: int, data: bytes, fin: bool, sent: int) -> None:
        self.quic.send_stream_data(stream_id, data, fin)
        if fin:
            del self.exchanges[stream_id]
        elif sent > _CHECK_UNSENT_BYTES:
            limit = self._server.settings.max_unsent_bytes
            if self.quic.unacknowledged_bytes(stream_id) > limit:
                self._server.counters.overrun += 1
                self._cancel(stream_id, ResetCode.CANCELLED)
        self.driver.mark()

    # Events

    def _event(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.StreamDataReceived):
            if self.quic.peer is not None:
                self._data(event.stream_id, event.data, event.end_stream)
        elif isinstance(event, (events.StreamReset, events.StopSendingReceived)):
            self._cancel(event.stream_id, ResetCode.CANCELLED)
        elif isinstance(event, events.ConnectionIdIssued):
            self._server.route(event.connection_id, self)
        elif isinstance(event, events.ConnectionIdRetired):
            self._server.unroute(event.connection_id, self)
        elif isinstance(event, events.HandshakeCompleted):
            self.up = True
            self._server.established(self)
        elif isinstance(event, events.ConnectionTerminated):
            self.lost()

    def _data(self, stream_id: int, data: bytes, fin: bool) -> None:
        entry = self.arriving.get(stream_id)
        if entry is not None:
            session = entry.session
        else:
            if self.quic.abandoned(stream_id):  # what was under way when we gave it up
                return
            session = ServerSession(self._server.settings.max_body_bytes)
        held = session.held_bytes
        try:
            arrival = session.receive(data, fin)
        except OverlayProtocolError as error:
            self._server.counters.protocol_errors += 1
            self._drop(stream_id, held)
            self.quic.abandon(stream_id, reset_code(error))
            return
        if arrival is not None:
            self._drop(stream_id, held)
            self._begin(stream_id, session, arrival)
        else:
            self._keep(stream_id, session, len(data), held)

    def _keep(self, stream_id: int, session: ServerSession, size: int, held: int) -> None:
        """A request that is not whole yet: `size` bytes more of it arrived."""
        grown = session.held_bytes - held
        self._held += grown
        if not self._server.hold(grown):
            self._drop(stream_id, held + grown)
            self.quic.abandon(stream_id, ResetCode.TOO_LARGE)
            return
        entry = self.arriving.get(stream_id)
        if entry is None:
            entry = self.arriving[stream_id] = _Arriving(session, self._server.clock.now())
        entry.received += size
        if entry.received + FIRST_WINDOW_BYTES // 2 > entry.granted:
            entry.granted = entry.received + _NEXT_WINDOW_BYTES
            self.quic.grant(stream_id, entry.granted)

    def _drop(self, stream_id: int, held: int) -> None:
        if self.arriving.pop(stream_id, None) is not None or held:
            self._held -= held
            self._server.hold(-held)

    def _begin(self, stream_id: int, session: ServerSession, arrival: Arrival | Relay) -> None:
        assert self.quic.peer is not None
        if isinstance(arrival, Relay):
            asked = RelayAsked(self, stream_id, session, arrival, self.quic.peer)
            self.exchanges[stream_id] = asked
            self._server.relay_asked(asked)
            return
        exchange = ServerExchange(self, stream_id, session, arrival, self.quic.peer)
        self.exchanges[stream_id] = exchange
        self._server.begin(exchange)

    def _cancel(self, stream_id: int, code: ResetCode) -> None:
        entry = self.arriving.get(stream_id)
        if entry is not None:
            self._drop(stream_id, entry.session.held_bytes)
        exchange = self.exchanges.pop(stream_id, None)
        self.quic.abandon(stream_id, code)
        if exchange is not None:
            self._server.counters.cancelled += 1
            exchange.cancel()

    def _datagram(self, data: bytes, now: float) -> None:
        """Answer a probe. Of several that came at once the newest is answered, for all of them."""
        counters = self._server.counters
        if not self._budget.take(now):
            counters.datagrams_dropped += 1
            return
        probe = decode(data)
        if not isinstance(probe, Probe):
            counters.datagrams_malformed += 1
            return
        self._probes += 1
        self._probed = max(self._probed, probe.number)
        stalled = self._server.stalled()
        sent = self._echoes + 1
        if self.quic.send_datagram(encode_echo(self._probed, self._probes, sent, stalled)):
            self._echoes = sent

    def _failed(self, error: Exception) -> None:
        self._server.counters.packet_errors += 1
        log.error("a connection failed from inside", peer=str(self.quic.peer), error=repr(error))
        self.lost()

    # From the server

    def expire(self, before: float) -> None:
        """Reset requests that began to arrive before `before` and never became whole."""
        for stream_id, entry in list(self.arriving.items()):
            if entry.began >= before:
                break
            self._drop(stream_id, entry.session.held_bytes)
            self._server.counters.timed_out += 1
            self.quic.abandon(stream_id, ResetCode.TIMEOUT)
            self.driver.mark()

    def let_go(self) -> None:
        """The client has been silent for so long that it has gone elsewhere: compute no more for
        it. The connection stays, should it come back."""
        for stream_id in list(self.exchanges):
            self._server.counters.unheard += 1
            self._cancel(stream_id, ResetCode.UNHEARD)
        self.driver.mark()

    def end(self, reason: str) -> None:
        """Say goodbye, and end now."""
        self.quic.close(reason_phrase=reason)
        self.driver.flush_now()
        self.lost()

    def lost(self) -> None:
        """The connection is over."""
        self.driver.stop()
        self.quic.on_datagram = None
        self._server.hold(-self._held)
        self._held = 0
        self.arriving.clear()
        exchanges, self.exchanges = self.exchanges, {}
        for exchange in exchanges.values():
            self._server.counters.cancelled += 1
            exchange.cancel()
        self._server.forget(self)
