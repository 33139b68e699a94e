"""One QUIC connection to a region, from the first packet to its end; the tunnel makes a new one
after each."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.tls import AlertDescription
from msgspec import Struct

from runtime import logs
from runtime.clock import Clock
from runtime.errors import TradewindError
from topology.overlay.connection import OverlayConnection
from topology.overlay.driver import Driver
from topology.overlay.errors import OverlayProtocolError, PathDown
from topology.overlay.exchange import Exchange
from topology.overlay.frames import Relayed
from topology.overlay.monitor import Estimate, PathState, Rules
from topology.overlay.session import ResetCode
from topology.overlay.trust import Trust
from topology.overlay.udp import Address, Batch, UdpPort
from topology.overlay.via import Asking, relay_bytes
from topology.overlay.watch import Shell, Watch

log = logs.get("tunnel")

_CRYPTO_ERROR = 0x100  # QUIC error codes above it carry a TLS alert (RFC 9001, section 4.8)


class Dialled(Struct):
    """What a connection is made of."""

    region: str
    family: socket.AddressFamily
    address: Address
    configuration: QuicConfiguration
    trust: Trust
    clock: Clock
    window_bytes: int  # of one exchange
    rules: Rules
    renew_share: float  # of a connection's life before a certificate runs out: end it when idle
    prefix: bytes = b""  # of each datagram, both ways: a relay's head


class ClientConnection:
    """`on_up` is called once, when both ends have accepted each other; `on_path` whenever the state
    of its path is another one; `on_down` once, at the end, with the reason. `up` is whether it may
    be used: not while its path is silent. Raises `OSError` when there is no route."""

    def __init__(
        self,
        dialled: Dialled,
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        on_path: Callable[[PathState, str], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._dialled = dialled
        self._clock = dialled.clock
        self._on_up = on_up
        self._on_down = on_down
        self._on_path = on_path
        self.up = False
        self.over = False
        self.exchanges: dict[int, Exchange | Asking] = {}
        self.strays = 0  # datagrams without our prefix
        self._watch: Watch | None = None  # from when both ends have accepted each other
        self.quic = OverlayConnection(
            configuration=dialled.configuration, trust=dialled.trust, max_streams=0
        )
        self.port = UdpPort.connect(
            loop, dialled.family, dialled.address, self._received, self._refused
        )
        self._driver = Driver(
            loop, self._clock, self.quic, self._transmit, self._event, self._failed
        )
        now = self._clock.now()
        self.quic.connect(dialled.address, now)
        self._driver.flush_now()

    # For the tunnel and its exchanges

    @property
    def distance_s(self) -> float | None:
        """The path's own round-trip time: the least of late, so that neither a busy process nor
        a queue makes a near region look far. Patience goes by the smoothed one instead."""
        return self._watch.distance_s if self._watch is not None and self.up else None

    @property
    def estimate(self) -> Estimate | None:
        """What is known of the path; None before both ends have accepted each other."""
        return self._watch.estimate if self._watch is not None else None

    @property
    def target(self) -> tuple[socket.AddressFamily, Address]:
        """Where its datagrams go."""
        return self._dialled.family, self._dialled.address

    def open(self, data: bytes) -> Exchange:
        """Send a whole request on a stream of its own."""
        stream_id = self.quic.get_next_available_stream_id()
        exchange = Exchange(self._dialled.region, self, stream_id, self._dialled.window_bytes)
        self._begin(stream_id, exchange, data)
        return exchange

    async def bind(self, region: str, turn: int) -> Relayed:
        """Have the peer relay datagrams to a core of `region`."""
        stream_id = self.quic.get_next_available_stream_id()
        asking = Asking(self._dialled.region, self, stream_id)
        self._begin(stream_id, asking, relay_bytes(region, turn))
        return await asking.answer()

    def _begin(self, stream_id: int, exchange: Exchange | Asking, data: bytes) -> None:
        if not self.exchanges and self._watch is not None:
            self._watch.hurry()
        self.exchanges[stream_id] = exchange
        self.quic.send_stream_data(stream_id, data, True)
        self._driver.mark()

    def grant(self, stream_id: int, limit_bytes: int) -> None:
        self.quic.grant(stream_id, limit_bytes)
        self._driver.mark()

    def abandon(self, stream_id: int, code: ResetCode) -> None:
        """Nobody wants the rest of a stream."""
        self._forget(stream_id)
        if not self.over:
            self.quic.abandon(stream_id, code)
            self._driver.mark()

    def close(self, reason: str) -> None:
        """Say goodbye, and end now."""
        if not self.over:
            self.quic.close(reason_phrase=reason)
            self._driver.flush_now()
            self._end(reason)

    # The socket

    def _transmit(self, datagrams: list[bytes], _: Address) -> None:
        prefix = self._dialled.prefix
        if prefix:
            datagrams = [prefix + data for data in datagrams]
        self.port.send(datagrams, None)

    def _received(self, batch: Batch) -> None:
        now = self._clock.now()
        self._driver.receive(self._stripped(batch), self._dialled.address, now)
        if self._watch is None and not self.over and self.quic.confirmed:  # this makes no event
            self._begin_to_watch()
        self._driver.step()

    def _begin_to_watch(self) -> None:
        self.up = True
        shell = Shell(
            busy=lambda: self.exchanges,
            read_now=self.port.read_now,
            mark=self._driver.mark,
            on_state=self._path,
            on_over=self.close,
        )
        rules, share = self._dialled.rules, self._dialled.renew_share
        self._watch = Watch(self._loop, self._clock, self.quic, rules, shell, share)
        self._on_up()

    def _stripped(self, batch: Batch) -> list[bytes]:
        """What came with our prefix, without it."""
        prefix = self._dialled.prefix
        if not prefix:
            return [data for data, _ in batch]
        size = len(prefix)
        found = [data[size:] for data, _ in batch if len(data) > size and data.startswith(prefix)]
        self.strays += len(batch) - len(found)
        return found

    def _failed(self, error: Exception) -> None:
        log.error("a connection failed from inside", region=self._dialled.region, error=repr(error))
        self._end(f"the connection failed from inside: {error!r}")

    def _refused(self) -> None:
        # Anyone on the way may forge ICMP: it ends attempts and silent paths, never a working one.
        if not self.up:
            self._end("nobody listens at the address")

    # Events

    def _event(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.StreamDataReceived):
            exchange = self.exchanges.get(event.stream_id)
            if exchange is not None:
                if event.end_stream:
                    self._forget(event.stream_id)
                exchange.feed(event.data, event.end_stream)
        elif isinstance(event, events.PingAcknowledged):
            if self._watch is not None:
                self._watch.acknowledged(event.uid)
        elif isinstance(event, events.StreamReset):
            self._reset(event.stream_id, event.error_code)
        elif isinstance(event, events.ConnectionTerminated):
            self._end(self._why(event))

    def _reset(self, stream_id: int, code: int) -> None:
        exchange = self.exchanges.get(stream_id)
        if exchange is not None:
            self._forget(stream_id)
            if code == ResetCode.UNHEARD:  # we were stopped, or what we send did not arrive
                exchange.fail(PathDown(self._dialled.region, "it heard nothing of us"))
                return
            name = ResetCode(code).name.lower() if code in list(ResetCode) else f"{code:#x}"
            exchange.fail(OverlayProtocolError(f"the region reset the stream: {name}"))

    def _why(self, event: events.ConnectionTerminated) -> str:
        if self.quic.refusal is not None:
            return f"the region was refused: {self.quic.refusal.message}"
        alert = event.error_code - _CRYPTO_ERROR
        if 0 <= alert <= 255 and not self.up:
            known = alert in list(AlertDescription)
            name = AlertDescription(alert).name.replace("_", " ") if known else str(alert)
            return f"the TLS handshake failed: {name}"
        return event.reason_phrase or f"closed with code {event.error_code:#x}"

    def _forget(self, stream_id: int) -> None:
        self.exchanges.pop(stream_id, None)

    # The path

    def _path(self, state: PathState, why: str) -> None:
        self.up = state != "silent"
        if not self.up:
            self._fail_all(why)  # now: elsewhere they can go on
        self._on_path(state, why)

    def _fail_all(self, why: str) -> None:
        """The exchanges are lost, whether or not the connection is."""
        error: TradewindError = PathDown(self._dialled.region, why)
        exchanges, self.exchanges = self.exchanges, {}
        for stream_id, exchange in exchanges.items():
            if not self.over:  # the region is told once it can be
                self.quic.abandon(stream_id, ResetCode.CANCELLED)
                self._driver.mark()
            exchange.fail(error)

    def _end(self, reason: str) -> None:
        if self.over:
            return
        self.over, self.up = True, False
        self._driver.stop()
        if self._watch is not None:
            self._watch.stop()
        self.port.close()
        self._fail_all(reason)
        self._on_down(reason)
