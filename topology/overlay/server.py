"""The server's end of the overlay: accepts mutually authenticated QUIC connections."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Annotated

from msgspec import Meta, Struct

from runtime.clock import Clock
from runtime.identity import Identity, Principal
from topology.overlay.frames import Accept, End, Failure, Request, Tokens


class ServerSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How an overlay server behaves."""

    idle_timeout_ms: Annotated[int, Meta(gt=0)] = 15000  # a connection without packets ends
    max_connections: Annotated[int, Meta(gt=0)] = 4096
    max_exchanges: Annotated[int, Meta(gt=0)] = 2048  # at once, per connection
    max_body_bytes: Annotated[int, Meta(gt=0)] = 4 * 2**20
    max_datagram_bytes: Annotated[int, Meta(ge=1200, le=65507)] = 1350


class ServerExchange:
    """One request, and the way to answer it."""

    request: Request
    body: bytes
    peer: Principal
    on_cancel: Callable[[], None] | None

    def send(self, frame: Accept | Tokens | End | Failure) -> None:
        """Send a frame; `End` and `Failure` finish the stream. After a cancel it does nothing."""
        raise NotImplementedError


class OverlayServer:
    """Listens on one UDP port; `serve` makes one."""

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
    ) -> OverlayServer:
        """Bind and serve. `port` 0 takes a free one, see `.port`."""
        raise NotImplementedError

    @property
    def port(self) -> int:
        raise NotImplementedError

    async def close(self, grace_s: float = 0.0) -> None:
        """Refuse new exchanges (`draining`), let open ones finish for `grace_s`, then close."""
        raise NotImplementedError
