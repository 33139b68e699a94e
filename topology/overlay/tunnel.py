"""The client's end of the overlay: a connection to one region, kept up."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from random import Random
from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from runtime import logs
from runtime.backoff import Backoff
from runtime.clock import Clock, SystemClock
from runtime.errors import TradewindError
from runtime.identity import Identity, Principal
from topology.overlay.client import ClientConnection, Dialled
from topology.overlay.connection import configure
from topology.overlay.errors import PathDown, RegionFailure
from topology.overlay.exchange import Exchange
from topology.overlay.frames import Failure, Request
from topology.overlay.monitor import Estimate, PathState, Rules
from topology.overlay.relay import DATAGRAM_BYTES, HEAD, HEAD_BYTES
from topology.overlay.session import request_bytes
from topology.overlay.trust import Trust
from topology.overlay.udp import Address, resolve
from topology.overlay.via import Bound, Via

log = logs.get("tunnel")

State: TypeAlias = Literal[
    "idle", "connecting", "connected", "stalled", "silent", "waiting", "closed"
]
_OF_PATH: dict[PathState, State] = {
    "up": "connected", "suspect": "connected", "stalled": "stalled", "silent": "silent",
}  # fmt: skip
_STABLE_S = 1.0  # a path that lived for so long was a good one
_RENEW_SHARES = 0.02, 0.2  # of a certificate's time that was left when a connection began
_RELAY_AWAITED_S = 1.0  # asking a tunnel that is down costs nothing, so it is asked often
PEER_ROLES = ("core",)


class TunnelSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How a tunnel behaves. The defaults suit a WAN."""

    connect_timeout_ms: Annotated[int, Meta(gt=0)] = 5000
    idle_timeout_ms: Annotated[int, Meta(gt=0)] = 15000
    probe_idle_ms: Annotated[int, Meta(ge=10, le=5000)] = 1000  # between probes of an idle path
    probe_busy_ms: Annotated[int, Meta(ge=10, le=1000)] = 50  # and of one with open exchanges
    # A path is silent when nothing was answered for a round trip and so long, or for a round trip
    # and so many times its variation, if that is longer. Its connection is probed, then ended.
    silent_after_ms: Annotated[int, Meta(ge=10, le=10_000)] = 150
    silent_after_jitters: Annotated[float, Meta(gt=0, le=100)] = 4.0
    silent_keep_ms: Annotated[int, Meta(ge=0, le=60_000)] = 3000
    backoff_min_ms: Annotated[int, Meta(gt=0)] = 100
    backoff_max_ms: Annotated[int, Meta(gt=0)] = 5000
    max_datagram_bytes: Annotated[int, Meta(ge=1200, le=65507)] = 1350
    max_exchanges: Annotated[int, Meta(gt=0)] = 4096  # open, or waiting for a stream
    exchange_buffer_bytes: Annotated[int, Meta(ge=16384)] = 256 * 1024  # not yet decoded


class TunnelStatus(Struct, frozen=True):
    """What a tunnel is now, and what it has counted since it was made."""

    region: str
    address: str
    state: State
    since_s: float  # on the tunnel's clock
    rtt_ms: float | None
    reason: str  # why it is not connected
    open_exchanges: int
    connects: int  # attempts
    connected: int  # attempts that succeeded
    exchanges: int
    refused_locally: int  # exchanges above `max_exchanges`
    path_downs: int  # times that a working path died
    revived: int = 0  # times that a silent one answered again
    estimate: Estimate | None = None


class Tunnel:
    """A connection to `region` at `address` ("host:port"), kept up for as long as it is open.

    With `via`, the direct tunnel to another region, it goes through a relay there instead, bound
    anew for each attempt; `turn` is the first core of `region` to try, and `address` is what
    people are shown. Both ends are the same: what lies between sees ciphertext alone.
    """

    def __init__(
        self,
        region: str,
        address: str,
        identity: Identity,
        clock: Clock | None = None,
        settings: TunnelSettings | None = None,
        *,
        rng: Random | None = None,
        via: Via | None = None,
        turn: int = 0,
        on_change: Callable[[TunnelStatus], None] | None = None,
    ) -> None:
        self.region = region
        self.address = address
        self.settings = settings or TunnelSettings()
        self._clock = clock or SystemClock()
        self._via = via
        self._turn = turn
        self.use(identity)
        self._on_change = on_change
        self._rng = rng or Random()
        self._backoff = Backoff(
            self.settings.backoff_min_ms / 1000,
            self.settings.backoff_max_ms / 1000,
            self._rng.random,
        )
        self._relay_down = False  # at the latest attempt
        self._connection: ClientConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._state: State = "idle"
        self._since = self._clock.now()
        self._reason = "not started"
        self._connects = self._connected = self._exchanges = 0
        self._refused_locally = self._path_downs = self._revived = 0

    def use(self, identity: Identity) -> None:
        """Show this identity from the next connection on: certificates are renewed.

        Raises `IdentityError` when it is unusable.
        """
        self._configuration = configure(
            identity,
            is_client=True,
            idle_timeout_ms=self.settings.idle_timeout_ms,
            max_datagram_bytes=self._datagram_bytes(),
            max_stream_data_bytes=self.settings.exchange_buffer_bytes,
        )
        self._trust = Trust(identity.ca_pem, PEER_ROLES, self.region)

    def start(self) -> None:
        """Begin to connect, and keep connected. Needs a running event loop."""
        if self._task is None and self._state != "closed":
            self._task = asyncio.get_running_loop().create_task(
                self._run(), name=f"tunnel {self.region}"
            )

    async def close(self) -> None:
        """Close the connection for good; open exchanges raise `PathDown`."""
        self._change("closed", "the tunnel was closed")
        if self._connection is not None:
            self._connection.close("the tunnel was closed")
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def connected(self) -> bool:
        """Whether to use it: the region answers, and says that it serves."""
        return self._state == "connected"

    @property
    def open_exchanges(self) -> int:
        """How many are open now."""
        return len(self._connection.exchanges) if self._connection is not None else 0

    @property
    def estimate(self) -> Estimate:
        """What is known of the path now."""
        connection = self._connection
        estimate = connection.estimate if connection is not None else None
        if estimate is not None and self._state != "closed":
            return estimate
        state: PathState = "connecting" if self._state == "connecting" else "waiting"
        return Estimate.unknown(state, self._since, self._reason)

    @property
    def rtt_ms(self) -> float | None:
        """The path's own round-trip time, the least of late; None while not connected."""
        distance_s = self._connection.distance_s if self._connection is not None else None
        return None if distance_s is None else distance_s * 1000

    @property
    def peer(self) -> Principal | None:
        """Whom the region's certificate speaks for, while connected."""
        return self._connection.quic.peer if self._connection and self.connected else None

    @property
    def since(self) -> float:
        """When the state last changed, on the tunnel's clock."""
        return self._since

    @property
    def status(self) -> TunnelStatus:
        return TunnelStatus(
            region=self.region,
            address=self.address,
            state=self._state,
            since_s=self._since,
            rtt_ms=self.rtt_ms,
            reason=self._reason,
            open_exchanges=self.open_exchanges,
            connects=self._connects,
            connected=self._connected,
            exchanges=self._exchanges,
            refused_locally=self._refused_locally,
            path_downs=self._path_downs,
            revived=self._revived,
            estimate=self.estimate,
        )

    def open(self, request: Request, body: bytes) -> Exchange:
        """Send a request. Raises `PathDown` at once when not connected, or `FrameTooLarge`.

        With `max_exchanges` open already, the exchange that is returned fails at its first
        `next` with `RegionFailure` (`overloaded`): the region answers too slowly.
        """
        connection = self._connection
        if connection is None or not connection.up:
            raise PathDown(self.region, self._reason)
        data = request_bytes(request, body)
        if len(connection.exchanges) >= self.settings.max_exchanges:
            self._refused_locally += 1
            return Exchange.failed(self.region, RegionFailure(self.region, _FULL))
        self._exchanges += 1
        return connection.open(data)

    async def bind(self, region: str, turn: int) -> Bound:
        """Have this region relay datagrams to a core of `region`: a `Via`.

        Raises `PathDown` at once when not connected, `RegionFailure` or `OverlayProtocolError`.
        """
        if self._via is not None:
            raise PathDown(region, f"{self.region} is reached through a relay itself")
        connection = self._connection
        if connection is None or not connection.up:
            raise PathDown(self.region, self._reason)
        relayed = await connection.bind(region, turn)
        family, address = connection.target
        return Bound(family, address, relayed.binding, relayed.idle_ms)

    async def _run(self) -> None:
        while True:  # until `close` cancels it
            self._change("connecting", self._reason if self._connects else "connecting")
            reason = await self._attempt()
            delay_s = self._backoff.next_s()
            if self._relay_down:
                delay_s = min(delay_s, _RELAY_AWAITED_S)
            self._change("waiting", reason)
            await asyncio.sleep(delay_s)

    async def _attempt(self) -> str:
        """Connect, and return once the connection is over: why it ended."""
        self._connects += 1
        self._relay_down = False
        down: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        up_s = 0.0

        def on_up() -> None:
            nonlocal up_s
            up_s = self._clock.now()
            up.set_result(None)
            self._connected += 1
            self._change("connected", "")

        def on_down(reason: str) -> None:
            if up.done():
                self._path_downs += self._state in ("connected", "stalled")
                if self._clock.now() - up_s > _STABLE_S:
                    self._backoff.reset()  # a region that takes us and drops us is not rushed
            if self._state != "closed":
                self._change("waiting", reason)
            if not down.done():  # cancelled with the task that waited for it
                down.set_result(reason)

        try:
            async with asyncio.timeout(self.settings.connect_timeout_ms / 1000):
                where = await self._where()
            connection = ClientConnection(self._dial(*where), on_up, on_down, self._path)
        except TimeoutError:
            return f"{self.address}: no answer in {self.settings.connect_timeout_ms} ms"
        except OSError as error:
            return f"{self.address}: {error.strerror or error}"
        except TradewindError as error:
            self._relay_down = isinstance(error, PathDown)
            return f"not relayed: {error.message}"  # one line: what to do is for people who asked
        self._connection = connection
        try:
            await asyncio.wait(
                (up, down),
                timeout=self.settings.connect_timeout_ms / 1000,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not up.done() and not down.done():
                connection.close(f"no answer in {self.settings.connect_timeout_ms} ms")
            return await down
        finally:
            connection.close("the tunnel was closed")
            self._connection = None

    async def _where(self) -> tuple[socket.AddressFamily, Address, bytes]:
        """Where to send datagrams, and what goes before each of them."""
        if self._via is None:
            family, address = await resolve(self.address)
            return family, address, b""
        bound = await self._via.bind(self.region, self._turn + self._connects - 1)
        return bound.family, bound.address, HEAD + bound.binding

    def _datagram_bytes(self) -> int:
        """So that a relayed datagram is no larger on the wire than a direct one, and no larger than
        a relay takes: probes would pass, and data would not."""
        most = self.settings.max_datagram_bytes
        return most if self._via is None else max(1200, min(most - HEAD_BYTES, DATAGRAM_BYTES))

    def _dial(self, family: socket.AddressFamily, address: Address, prefix: bytes) -> Dialled:
        settings = self.settings
        return Dialled(
            region=self.region,
            family=family,
            address=address,
            configuration=self._configuration,
            trust=self._trust,
            clock=self._clock,
            window_bytes=settings.exchange_buffer_bytes,
            rules=Rules(
                idle_every_s=settings.probe_idle_ms / 1000,
                busy_every_s=settings.probe_busy_ms / 1000,
                patience_s=settings.silent_after_ms / 1000,
                jitters=settings.silent_after_jitters,
                keep_s=settings.silent_keep_ms / 1000,
            ),
            renew_share=self._rng.uniform(*_RENEW_SHARES),
            prefix=prefix,
        )

    def _path(self, state: PathState, why: str) -> None:
        if self._state == "closed":
            return
        self._path_downs += state == "silent"
        self._revived += self._state == "silent"
        self._change(_OF_PATH[state], why)

    def _change(self, state: State, reason: str) -> None:
        if state == self._state:
            return
        if "connected" in (state, self._state):
            log.info("path", region=self.region, state=state, reason=reason)
        self._state, self._reason, self._since = state, reason, self._clock.now()
        if self._on_change is not None:
            self._on_change(self.status)


_FULL = Failure(
    code="overloaded",
    message="too many requests wait for this region already",
    status=503,
    retryable=True,
)
