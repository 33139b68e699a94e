"""The settings file of `tradewind edge run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from edge_node.front.listener import TlsFiles
from runtime.identity import IdentityFiles
from topology.fields import HostPort, Name, Port
from topology.overlay.tunnel import TunnelSettings
from topology.wire.ads_client import AdsSettings

Milliseconds = Annotated[int, Meta(gt=0, le=3_600_000)]


class DiskCacheSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Answers on disk, in `state_dir`/cache, for all workers of this edge together.

    How much is kept says the policy (`cache.disk_max_bytes`); `max_bytes` bounds the file
    whatever that says. Below 1 MiB there is none.
    """

    enabled: bool = True
    max_bytes: Annotated[int, Meta(ge=0)] = 4 * 2**30


class EdgeSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One edge on one machine."""

    name: Name  # of the EdgeSite that this edge is part of
    identity: IdentityFiles  # role `edge`
    control_plane: tuple[HostPort, ...] = ()  # replicas; none: run on the snapshot on disk
    state_dir: Path  # keeps the last good snapshot, one file a worker
    host: str = "127.0.0.1"  # to listen on, for clients
    port: Port = 8080
    tls: TlsFiles | None = None  # what clients see; none: plain HTTP
    http2: bool = False  # beside HTTP/1.1; behind a proxy only: idle connections are not closed
    workers: Annotated[int, Meta(ge=1, le=64)] = 1  # processes that share the port
    max_connections: Annotated[int, Meta(gt=0)] = 8192  # of clients, per worker
    body_timeout_ms: Milliseconds = 10_000  # for a client to send its request
    shutdown_grace_ms: Milliseconds = 10_000  # for requests under way to finish
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    disk_cache: DiskCacheSettings = DiskCacheSettings()
    overlay: TunnelSettings = TunnelSettings()
    discovery: AdsSettings = AdsSettings()

    @property
    def disk_cache_dir(self) -> Path:
        return self.state_dir / "cache"

    def node_id(self, worker: int) -> str:
        """How this worker is named to the control plane."""
        return f"edge/{self.name}" if self.workers == 1 else f"edge/{self.name}/{worker}"

    def last_good(self, worker: int) -> Path:
        return self.state_dir / f"snapshot-{worker}"
