"""Settings of a geo-DNS process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from control_plane.geodns.answers import AnswerSettings
from control_plane.geodns.health import HealthSettings
from control_plane.geodns.server import ServerSettings
from runtime.identity import IdentityFiles
from topology.fields import HostPort
from topology.geo import PrefixRow


class DnsSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `tradewind dns run --settings FILE` reads.

    Without `control_plane` the process serves the snapshot in `last_good`, and no other.
    """

    node_id: str = "dns/ns1"
    listen: Annotated[tuple[HostPort, ...], Meta(min_length=1)] = ("127.0.0.1:5300",)
    workers: Annotated[int, Meta(ge=1, le=64)] = 1  # processes that share the addresses
    control_plane: tuple[HostPort, ...] = ()  # replicas, in no order
    identity: IdentityFiles | None = None  # role `dns`; needed for `control_plane`
    last_good: Path | None = None  # where the last snapshot is kept
    prefixes: tuple[PrefixRow, ...] = ()  # where clients are; or in a file:
    prefix_table: Path | None = None  # .csv or YAML with the fields of `prefixes`
    mmdb: Path | None = None  # asked where the table has no answer
    metrics: HostPort | None = "127.0.0.1:5301"  # HTTP: /metrics, /healthz, /readyz
    server: ServerSettings = field(default_factory=ServerSettings)
    answers: AnswerSettings = field(default_factory=AnswerSettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
