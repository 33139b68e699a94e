"""What a control-plane replica reads: `tradewind control-plane run --settings FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from control_plane.changes.history import KEEP
from control_plane.discovery.server import DiscoverySettings
from control_plane.membership.settings import MembershipSettings
from control_plane.store.settings import EtcdSettings
from runtime.identity import IdentityFiles
from topology.fields import HostPort
from topology.geo import PrefixRow


class ControlSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One replica. Its name is that of its certificate, whose role is `control`."""

    identity: IdentityFiles
    """Certificate, key and CA: `tradewind pki issue control/<name>` makes them."""
    listen: HostPort = "127.0.0.1:7400"
    """Where discovery (xDS) and the admin API are served, over mutual TLS."""
    advertise: HostPort | None = None
    """Where the other replicas reach this one. None: at `listen`."""
    etcd: EtcdSettings | None = None
    """The store. None: this process's memory, which no other replica sees; for trying out."""
    data_dir: Path | None = None
    """Where the last good snapshot is kept. None: nowhere; then a start needs the store."""
    metrics: HostPort | None = None
    """Where HTTP /metrics, /healthz and /readyz are served. None: nowhere."""
    prefixes: tuple[PrefixRow, ...] = ()
    """Where clients are, for `tradewind explain`: the same as geo-DNS has. Or in a file:"""
    prefix_table: Path | None = None
    """A CSV or YAML file with the fields of `prefixes`."""
    mmdb: Path | None = None
    """An MMDB file, asked where the table has no answer."""
    membership: MembershipSettings = MembershipSettings()
    """How edges and cores are known to be there: by leases in the store, or in Consul."""
    election_ttl_s: Annotated[float, Meta(ge=1, le=60)] = 2.0
    """How long the director's lease lasts when it is not renewed. After a crash another one
    takes over within this and half a second; etcd grants no less than 2 s with its defaults."""
    history_kept: Annotated[int, Meta(ge=1)] = KEEP
    """How many changes are kept in history and audit."""
    discovery: DiscoverySettings = field(default_factory=DiscoverySettings)
    """Bounds of the discovery server."""
    shutdown_grace_ms: int = 3_000
    """How long calls in progress may take to end when the replica is told to stop."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
