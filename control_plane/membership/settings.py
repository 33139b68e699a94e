"""How membership is kept: by leases in the store, or in Consul."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from topology.fields import HostPort

Seconds = Annotated[float, Meta(gt=0, le=3_600)]
Count = Annotated[int, Meta(ge=1)]


class ConsulSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The Consul agent beside this replica, and what is registered there."""

    address: HostPort = "127.0.0.1:8500"
    """The agent's HTTP API. A replica has an agent of its own, as Consul means it to be."""
    scheme: Literal["http", "https"] = "http"
    ca: Path | None = None
    """With https: PEM file with the CA of the agent's certificate. None: the system's CAs."""
    certificate: Path | None = None
    """With https: PEM file with our certificate, where the agent asks for one; and its key:"""
    key: Path | None = None
    token_file: Path | None = None
    """A file with the ACL token; read again when Consul refuses it. Needs `service:write` on the
    services, `service:read` and `node:read`."""
    prefix: Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?$")] = "tradewind"
    """Services are `<prefix>-edge`, `<prefix>-core` and `<prefix>-control`."""
    datacenter: str | None = None
    """Where members are looked for. None: the agent's own."""
    wait_s: Annotated[float, Meta(ge=1, le=600)] = 60.0
    """How long Consul may hold a blocking query in which nothing changes."""
    pause_s: Annotated[float, Meta(ge=0.01, le=60)] = 0.5
    """The least time between two queries for one service, however fast it changes."""
    call_timeout_s: Annotated[float, Meta(ge=0.1, le=60)] = 5.0
    """How long any other call may take."""
    remove_after_s: Annotated[float, Meta(ge=60)] = 600.0
    """After so long without a sign of life Consul removes a member's entry; at least a minute."""
    health: HostPort | None = None
    """Where this replica serves grpc.health.v1 in plain text, and nothing else, for the check of
    its own entry. None: the entry has a TTL check, which the replica itself keeps up."""

    check_every_s: Annotated[float, Meta(ge=1, le=600)] = 5.0
    """How often Consul asks the health service."""


class MembershipSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who is there, and how it is known."""

    backend: Literal["leases", "consul"] = "leases"
    """`leases`: under leases in the store. `consul`: as services with checks in Consul."""
    consul: ConsulSettings = ConsulSettings()
    """Read where the backend is `consul`."""
    ttl_s: Annotated[float, Meta(ge=2, le=3_600)] = 15.0
    """How long a node stays a member without a sign of life. It is renewed every third of that."""
    interval_s: Seconds = 2.0
    """Between two heartbeats of a node; what changes in between is said at once."""
    heartbeats_per_s: Count = 1_000
    """Nodes are told to come less often (up to a third of `ttl_s`) when they would exceed this."""
    max_nodes: Count = 20_000
    """How many nodes may keep a stream to this replica."""
    admissions_per_s: Count = 500
    """How many nodes are taken in per second, once as many have come at the same moment."""
    concurrency: Annotated[int, Meta(ge=1, le=1_000)] = 32
    """How many calls to the registry are under way at once."""
