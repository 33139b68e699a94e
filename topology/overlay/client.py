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
from topology.latency import WindowedMin
from topology.overlay.connection import OverlayConnection
from topology.overlay.driver import Driver
from topology.overlay.errors import OverlayProtocolError, PathDown
from topology.overlay.exchange import Exchange
from topology.overlay.frames import Relayed
from topology.overlay.liveness import Liveness
from topology.overlay.session import ResetCode
from topology.overlay.trust import Trust
from topology.overlay.udp import Address, Batch, UdpPort
from topology.overlay.via import Asking, relay_bytes

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
    keep_alive_s: float
    dead_after_s: float
    dead_after_rtts: float
    prefix: bytes = b""  # of each datagram, both ways: a relay's head


class ClientConnection:
    """`on_up` is called once, when both ends have accepted each other; `on_down` once, at the
    end, with the reason. Raises `OSError` when there is no route."""

    def __init__(
        self,
        dialled: Dialled,
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._dialled = dialled
        self._clock = dialled.clock
        self._on_up = on_up
        self._on_down = on_down
        self.up = False
        self.over = False
        self.exchanges: dict[int, Exchange | Asking] = {}
        self.strays = 0  # datagrams without our prefix
        self._awaited_since: float | None = None
        self._distance = WindowedMin()
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
        self._liveness = Liveness(
            now, dialled.keep_alive_s, dialled.dead_after_s, dialled.dead_after_rtts
        )
        self._check_at = 0.0
        self._check: asyncio.TimerHandle | None = None
        self.quic.connect(dialled.address, now)
        self._driver.flush_now()

    # For the tunnel and its exchanges

    @property
    def distance_s(self) -> float | None:
        """The path's own round-trip time: the least of late, so that neither a busy process nor
        a queue makes a near region look far. Patience goes by the smoothed one instead."""
        if not self.up:
            return None
        least = self._distance.at(self._clock.now())
        return self.quic.rtt_s if least is None else least

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
        if not self.exchanges:
            self._awaited_since = now = self._clock.now()
            self._liveness.asked(now)
            self._check_by(now + self._liveness.patience_s(self.quic.rtt_s) / 3)
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
        if self.quic.heard_s == now:  # something of it was the region's, not a forger's
            self._liveness.heard(now)
        latest = self.quic.latest_rtt_s
        if latest is not None:
            self._distance.add(now, latest)
        if not self.up and not self.over and self.quic.confirmed:  # this makes no event
            self.up = True
            self._check_by(now)
            self._on_up()
        self._driver.step()

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
        # Anyone on the way may forge ICMP, so it ends attempts alone, never a working path.
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
        elif isinstance(event, events.StreamReset):
            self._reset(event.stream_id, event.error_code)
        elif isinstance(event, events.ConnectionTerminated):
            self._end(self._why(event))

    def _reset(self, stream_id: int, code: int) -> None:
        exchange = self.exchanges.get(stream_id)
        if exchange is not None:
            self._forget(stream_id)
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
        if not self.exchanges:
            self._awaited_since = None

    # Silence

    def _check_by(self, at: float) -> None:
        """See to it that silence is judged at `at`, or earlier."""
        if self._check is not None:
            if self._check_at <= at:
                return
            self._check.cancel()
        self._check_at = at
        self._check = self._loop.call_later(max(0.0, at - self._clock.now()), self._judge)

    def _judge(self) -> None:
        self._check = None
        self.port.read_now()  # a process that was stopped finds the answers in the socket
        if self.over or not self.up:
            return
        now = self._clock.now()
        verdict = self._liveness.judge(now, self.quic.rtt_s, self._awaited_since)
        if verdict.action == "dead":
            silence_ms = (now - self._liveness.heard_s) * 1000
            self._end(f"nothing arrived for {silence_ms:.0f} ms")
            return
        if verdict.action == "ping":
            self._liveness.asked(now)
            self.quic.send_ping(0)
            self._driver.mark()
        self._check_by(verdict.again_s)

    def _end(self, reason: str) -> None:
        if self.over:
            return
        self.over, self.up = True, False
        self._driver.stop()
        if self._check is not None:
            self._check.cancel()
        self.port.close()
        error: TradewindError = PathDown(self._dialled.region, reason)
        exchanges, self.exchanges = self.exchanges, {}
        for exchange in exchanges.values():
            exchange.fail(error)
        self._on_down(reason)
