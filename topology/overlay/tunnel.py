"""The client's end of the overlay: one QUIC connection to one region."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Annotated, Literal

from msgspec import Meta, Struct

from runtime.clock import Clock, SystemClock
from runtime.identity import Identity
from topology.overlay.frames import Accept, End, Request, Tokens


class TunnelSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How a tunnel behaves. The defaults suit a WAN."""

    connect_timeout_ms: Annotated[int, Meta(gt=0)] = 5000
    keep_alive_ms: Annotated[int, Meta(gt=0)] = 1000  # between pings
    dead_after_ms: Annotated[int, Meta(gt=0)] = 750  # of silence while something is awaited
    dead_after_rtts: Annotated[float, Meta(gt=0)] = 4.0  # or so many round trips, if longer
    backoff_min_ms: Annotated[int, Meta(gt=0)] = 100
    backoff_max_ms: Annotated[int, Meta(gt=0)] = 5000
    max_datagram_bytes: Annotated[int, Meta(ge=1200, le=65507)] = 1350
    max_exchanges: Annotated[int, Meta(gt=0)] = 4096  # open or waiting for a stream
    exchange_buffer_bytes: Annotated[int, Meta(ge=16384)] = 2**20  # not yet read by the consumer


class TunnelStatus(Struct, frozen=True):
    """What a tunnel is now, and what it has counted since it was made."""

    region: str
    address: str
    state: Literal["idle", "connecting", "connected", "waiting", "closed"]
    since_s: float  # on the tunnel's clock
    rtt_ms: float | None
    reason: str  # why it is not connected, as a sentence part
    open_exchanges: int
    connects: int
    failures: int
    exchanges: int
    path_downs: int  # exchanges that ended in PathDown


class Exchange:
    """One request and its answer, as it comes."""

    async def next(self) -> Accept | Tokens | End:
        """The next frame of the answer. After `End`, do not call again.

        Raises `RegionFailure`, `PathDown` or `OverlayProtocolError`; each of them is final.
        """
        raise NotImplementedError

    def cancel(self) -> None:
        """Tell the region that nobody waits any more. May be called at any time, repeatedly."""
        raise NotImplementedError


class Tunnel:
    """A connection to `region` at `address` ("host:port"), kept up for as long as it is open."""

    def __init__(
        self,
        region: str,
        address: str,
        identity: Identity,
        clock: Clock | None = None,
        settings: TunnelSettings | None = None,
        *,
        rng: Random | None = None,
        on_change: Callable[[TunnelStatus], None] | None = None,
    ) -> None:
        self.region = region
        self.address = address
        self.clock = clock or SystemClock()
        self.settings = settings or TunnelSettings()

    def start(self) -> None:
        """Begin to connect, and keep connected. Needs a running event loop."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close the connection; open exchanges raise `PathDown`."""
        raise NotImplementedError

    @property
    def connected(self) -> bool:
        raise NotImplementedError

    @property
    def rtt_ms(self) -> float | None:
        """Smoothed round-trip time, or None before the first measurement."""
        raise NotImplementedError

    @property
    def since(self) -> float:
        """When `connected` last changed, on the tunnel's clock."""
        raise NotImplementedError

    @property
    def status(self) -> TunnelStatus:
        raise NotImplementedError

    def open(self, request: Request, body: bytes) -> Exchange:
        """Send a request. Raises `PathDown` at once when not connected, `FrameTooLarge`."""
        raise NotImplementedError
