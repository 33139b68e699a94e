"""The server's end of the overlay: accepts mutually authenticated QUIC connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection
from typing import Annotated

from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from msgspec import Meta, Struct

from runtime import logs
from runtime.clock import Clock, SystemClock
from runtime.identity import Identity, Principal
from topology.overlay.connection import OverlayConnection, configure
from topology.overlay.frames import Failure, Relayed
from topology.overlay.peer import (
    FIRST_WINDOW_BYTES,
    PeerConnection,
    RelayAsked,
    ServerExchange,
)
from topology.overlay.refusals import Refusals
from topology.overlay.relay import NO_RELAY, RelaySettings, Route, UdpRelay
from topology.overlay.retry import AddressTokens
from topology.overlay.trust import Trust
from topology.overlay.udp import Address, Batch, UdpPort

log = logs.get("overlay")

_ID_BYTES = 8  # of our connection ids
_INITIAL_BYTES = 1200  # the least that a first datagram may have (RFC 9000, section 14.1)
_SWEEP_S = 1.0
_DRAIN_POLL_S = 0.01

__all__ = ["OverlayServer", "ServerCounters", "ServerExchange", "ServerSettings"]


class ServerSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How an overlay server behaves."""

    idle_timeout_ms: Annotated[int, Meta(gt=0)] = 15000  # a connection without packets ends
    handshake_timeout_ms: Annotated[int, Meta(gt=0)] = 5000
    request_timeout_ms: Annotated[int, Meta(gt=0)] = 15000  # from a request's first byte to FIN
    max_connections: Annotated[int, Meta(gt=0)] = 4096
    # Of one certificate's name; an edge has one per worker, and as many again per relay.
    max_connections_per_peer: Annotated[int, Meta(gt=0)] = 1024
    # Connections that are not up yet. From half of it on, newcomers must prove their address.
    max_handshakes: Annotated[int, Meta(gt=0)] = 256
    max_exchanges: Annotated[int, Meta(gt=0)] = 2048  # at once, per connection
    max_body_bytes: Annotated[int, Meta(gt=0)] = 4 * 2**20
    max_arriving_bytes: Annotated[int, Meta(gt=0)] = 256 * 2**20  # requests that are not whole
    max_unsent_bytes: Annotated[int, Meta(gt=0)] = 4 * 2**20  # of one answer
    max_datagram_bytes: Annotated[int, Meta(ge=1200, le=65507)] = 1350
    # With open exchanges a client is heard from ten times a second, or it has gone elsewhere.
    peer_silent_ms: Annotated[int, Meta(gt=0)] = 3000


class ServerCounters(Struct):
    """What a server has done since it was started."""

    accepted: int = 0  # connections
    closed: int = 0
    refused_no_certificate: int = 0
    refused_untrusted: int = 0
    refused_expired: int = 0
    refused_wrong_role: int = 0
    refused_full: int = 0  # connections above a limit
    refused_peer_full: int = 0  # and above that of one peer
    refused_token: int = 0  # newcomers with a token that is not theirs, or too old
    retries: int = 0  # newcomers who were told to prove their address first
    exchanges: int = 0
    drained: int = 0  # exchanges refused while shutting down
    cancelled: int = 0
    timed_out: int = 0
    overrun: int = 0  # answers that the client did not take fast enough
    protocol_errors: int = 0
    handler_errors: int = 0
    packet_errors: int = 0  # datagrams that made the QUIC library fail
    datagrams_dropped: int = 0  # DATAGRAM frames beyond what a peer may send in a second
    datagrams_malformed: int = 0  # DATAGRAM frames that are no probe
    unheard: int = 0  # exchanges given up since nothing was heard of the client any more
    expired: int = 0  # connections ended since a certificate ran out

    @property
    def refused(self) -> int:
        """Peers refused in the handshake."""
        return (
            self.refused_no_certificate
            + self.refused_untrusted
            + self.refused_expired
            + self.refused_wrong_role
        )


class OverlayServer:
    """Listens on one UDP port; `serve` makes one."""

    def __init__(
        self,
        identity: Identity,
        on_exchange: Callable[[ServerExchange], None],
        allowed_roles: Collection[str],
        settings: ServerSettings,
        clock: Clock,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.clock = clock
        self.settings = settings
        self.counters = ServerCounters()
        self.stalled: Callable[[], bool] = lambda: False
        self._on_exchange = on_exchange
        self._allowed_roles = frozenset(allowed_roles)
        self.use(identity)
        self._routes: dict[bytes, PeerConnection] = {}
        self._connections: set[PeerConnection] = set()
        self._held: dict[Principal, int] = {}  # connections that are up, by whose they are
        self._handshakes = 0
        self._arriving_bytes = 0
        self._draining = False
        self._refusals = Refusals(clock)
        self._tokens = AddressTokens()
        self._udp: UdpPort | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self.relay: UdpRelay | None = None
        self._binding: set[asyncio.Task[None]] = set()

    @classmethod
    async def serve(
        cls,
        host: str,
        port: int,
        identity: Identity,
        on_exchange: Callable[[ServerExchange], None],
        *,
        allowed_roles: Collection[str] = ("edge", "core"),
        settings: ServerSettings | None = None,
        clock: Clock | None = None,
        route: Route | None = None,
        relay: RelaySettings | None = None,
        stalled: Callable[[], bool] | None = None,
    ) -> OverlayServer:
        """Bind and serve; `port` 0 takes a free one, see `.port`. Raises `OSError`.

        `on_exchange` is called on the event loop once a request is whole. With a `route` the
        server is also a relay.
        """
        server = cls(
            identity, on_exchange, allowed_roles, settings or ServerSettings(),
            clock or SystemClock(),
        )  # fmt: skip
        loop = server.loop
        if stalled is not None:
            server.stalled = stalled
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        family, _, _, _, address = infos[0]
        server._udp = UdpPort.bind(loop, family, address, server._received)
        asked = relay or RelaySettings()
        if route is not None and asked.max_bindings:
            server.relay = UdpRelay(loop, server.clock, route, asked, server._udp.send)
        server._sweep = loop.call_later(_SWEEP_S, server._expire)
        return server

    def use(self, identity: Identity) -> None:
        """Show this identity to new connections: certificates are renewed while we run.

        Raises `IdentityError` when it is unusable.
        """
        self._configuration = configure(
            identity,
            is_client=False,
            idle_timeout_ms=self.settings.idle_timeout_ms,
            max_datagram_bytes=self.settings.max_datagram_bytes,
            max_stream_data_bytes=FIRST_WINDOW_BYTES,
        )
        self._trust = Trust(identity.ca_pem, self._allowed_roles)

    @property
    def port(self) -> int:
        assert self._udp is not None
        return self._udp.local_port

    @property
    def connections(self) -> int:
        return len(self._connections)

    @property
    def open_exchanges(self) -> int:
        return sum(len(connection.exchanges) for connection in self._connections)

    @property
    def udp(self) -> UdpPort:
        """The socket, for its counters."""
        assert self._udp is not None
        return self._udp

    async def close(self, grace_s: float = 0.0) -> None:
        """Refuse new exchanges (`draining`), let open ones finish for `grace_s`, then close."""
        self._draining = True
        end = self.clock.now() + grace_s
        # Acknowledgements make no event that could be waited for.
        while (busy := self._busy()) and self.clock.now() < end:  # noqa: ASYNC110
            await asyncio.sleep(_DRAIN_POLL_S)
        if busy and grace_s > 0:
            log.warning("open exchanges were cut", count=self.open_exchanges)
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in list(self._connections):
            connection.end("the region is shutting down")
        for task in self._binding:
            task.cancel()
        if self.relay is not None:
            self.relay.close()
        self.udp.close()

    def _busy(self) -> bool:
        """Somebody still waits for an answer, or for the rest of one."""
        return any(peer.exchanges or peer.quic.unsent() for peer in self._connections)

    # From connections

    def transmit(self, datagrams: list[bytes], address: Address) -> None:
        self.udp.send(datagrams, address)

    def route(self, connection_id: bytes, connection: PeerConnection) -> None:
        self._routes[connection_id] = connection
        connection.connection_ids.add(connection_id)

    def unroute(self, connection_id: bytes, connection: PeerConnection) -> None:
        self._routes.pop(connection_id, None)
        connection.connection_ids.discard(connection_id)

    def established(self, connection: PeerConnection) -> None:
        self._handshakes -= 1
        self.counters.accepted += 1
        peer = connection.quic.peer
        assert peer is not None  # it was accepted
        held = self._held[peer] = self._held.get(peer, 0) + 1
        if held > self.settings.max_connections_per_peer:
            self.counters.refused_peer_full += 1
            connection.end("this peer has as many connections as it may have")

    def begin(self, exchange: ServerExchange) -> None:
        """A request is whole: hand it to the handler, whose mistakes end here."""
        if self._draining:
            self.counters.drained += 1
            exchange.send(_DRAINING)
            return
        self.counters.exchanges += 1
        try:
            self._on_exchange(exchange)
        except Exception:
            self.counters.handler_errors += 1
            log.exception("a request's handler failed", request=exchange.request.request_id)
            if not exchange.ended:
                exchange.send(_INTERNAL)

    def relay_asked(self, asked: RelayAsked) -> None:
        """A peer wants to have datagrams relayed."""
        relay = self.relay
        if relay is None:
            asked.answer(NO_RELAY)
        elif self._draining:
            self.counters.drained += 1
            asked.answer(_DRAINING)
        elif relay.full:
            asked.answer(relay.refuse())
        else:
            task = self.loop.create_task(self._bind(relay, asked))
            self._binding.add(task)
            task.add_done_callback(self._binding.discard)

    async def _bind(self, relay: UdpRelay, asked: RelayAsked) -> None:
        frame: Relayed | Failure
        try:
            frame = await relay.bind(asked.peer, asked.host, asked.relay)
        except Exception:
            self.counters.handler_errors += 1
            log.exception("a relay was not made", region=asked.relay.region)
            frame = _INTERNAL
        if asked.cancelled and isinstance(frame, Relayed):
            relay.unbind(frame)
        else:
            asked.answer(frame)

    def hold(self, grown: int) -> bool:
        """Account for bytes of requests that are not whole; False when there are too many."""
        self._arriving_bytes += grown
        return self._arriving_bytes <= self.settings.max_arriving_bytes

    def forget(self, connection: PeerConnection) -> None:
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        for connection_id in connection.connection_ids:
            self._routes.pop(connection_id, None)
        self.counters.closed += 1
        if not connection.up:
            self._handshakes -= 1
        elif connection.quic.peer is not None:
            self._release(connection.quic.peer)
        refusal = connection.quic.refusal
        if refusal is not None:
            name = f"refused_{refusal.reason}"
            setattr(self.counters, name, getattr(self.counters, name) + 1)
            self._refusals.note(refusal.message)

    def _release(self, peer: Principal) -> None:
        held = self._held[peer] - 1
        if held:
            self._held[peer] = held
        else:
            del self._held[peer]

    # The socket

    def _received(self, batch: Batch) -> None:
        now = self.clock.now()
        routes = self._routes
        touched: dict[PeerConnection, None] = {}
        if self.relay is not None:
            batch = self.relay.pick(batch, now)
        for data, address in batch:
            connection = routes.get(data[1 : 1 + _ID_BYTES]) if data[0] < 0x80 else None
            if connection is None:
                connection = self._greet(data, address, now)
                if connection is None:
                    continue
            connection.driver.receive((data,), address, now)
            if not connection.up and not connection.quic.heard:
                connection.lost()  # noise must not hold the place of a handshake
                continue
            touched[connection] = None
        for connection in touched:
            connection.driver.step()
            if not connection.up and connection.quic.refusal is not None:
                connection.driver.flush_now()  # the TLS alert
                connection.lost()

    def _greet(self, data: bytes, address: Address, now: float) -> PeerConnection | None:
        """The connection of a datagram with a long header, a new one if it may begin one."""
        if not data[0] & 0x80:
            return None
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=_ID_BYTES)
        except ValueError:
            return None
        connection = self._routes.get(header.destination_cid)
        if connection is not None:
            return connection
        if (
            header.packet_type is not QuicPacketType.INITIAL
            or header.version not in self._configuration.supported_versions
            or len(data) < _INITIAL_BYTES
        ):
            return None
        settings = self.settings
        if (
            len(self._connections) >= settings.max_connections
            or self._handshakes >= settings.max_handshakes
        ):
            self.counters.refused_full += 1
            return None
        if header.token:
            original = self._tokens.original(header, address, now)
            if original is None:
                self.counters.refused_token += 1
                return None
            return self._accept(header.destination_cid, now, original)
        if self._handshakes * 2 >= settings.max_handshakes:
            self.counters.retries += 1
            self.udp.send([self._tokens.retry(header, address, now)], address)
            return None
        return self._accept(header.destination_cid, now)

    def _accept(
        self, connection_id: bytes, now: float, original: bytes | None = None
    ) -> PeerConnection:
        """`original` is what the client chose, where it was told to retry with `connection_id`."""
        quic = OverlayConnection(
            configuration=self._configuration,
            trust=self._trust,
            max_streams=self.settings.max_exchanges,
            original_destination_connection_id=original or connection_id,
            retry_source_connection_id=connection_id if original else None,
        )
        connection = PeerConnection(self, quic, now)
        self._connections.add(connection)
        self._handshakes += 1
        self.route(connection_id, connection)
        self.route(quic.host_cid, connection)
        return connection

    def _expire(self) -> None:
        """Once a second: end what takes too long, and what may last no longer."""
        # First, so that a handler's mistake, told of a cancel below, does not end the sweeps.
        self._sweep = self.loop.call_later(_SWEEP_S, self._expire)
        self.udp.read_now()  # a process that was stopped has not heard yet what came meanwhile
        now, wall = self.clock.now(), self.clock.wall()
        unheard = now - self.settings.peer_silent_ms / 1000
        if self.relay is not None:
            self.relay.expire(now)
        oldest = now - self.settings.handshake_timeout_ms / 1000
        for connection in list(self._connections):
            if not connection.up and connection.since < oldest:
                connection.lost()
                continue
            if connection.quic.expires_s is not None and connection.quic.expires_s <= wall:
                self.counters.expired += 1
                connection.end("a certificate has run out")
                continue
            if connection.arriving:
                connection.expire(now - self.settings.request_timeout_ms / 1000)
            if connection.exchanges and connection.quic.heard_s < unheard:
                connection.let_go()


_DRAINING = Failure(
    code="draining", message="the region is shutting down", status=503, retryable=True
)
_INTERNAL = Failure(
    code="internal", message="the region failed on this request", status=500, retryable=True
)
