"""The one definition of each resource. Schemas, docs and wire forms are derived from here.

A resource is `kind`, `name`, `spec`; the store adds `revision`, `author` and `time_s`. People
write YAML, etcd holds JSON under `/tradewind/v1/<kind>/<name>`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from runtime.validation import InvalidDocument, Problem, check, convert, describe
from topology.fields import (
    HostPort,
    Jurisdiction,
    Latitude,
    Longitude,
    ModelName,
    Name,
    Percent,
    Port,
    Positive,
    Selector,
    Spec,
    UnixTime,
)
from topology.policy import PolicySpec
from topology.resource_checks import beyond_types

ANY = "*"


class RegionSpec(Spec, frozen=True):
    """A place that runs full models. `cores` are the overlay addresses, UDP `host:port`."""

    city: str
    latitude: Latitude
    longitude: Longitude
    jurisdiction: Jurisdiction
    cores: Annotated[tuple[HostPort, ...], Meta(min_length=1)]
    capacity_tokens_per_s: Positive  # decoded tokens the region sustains
    # TCP <IP address>:port of the region's HTTP API, or of gRPC servers in it: what proxies of
    # others (Envoy, gRPC clients) are sent to. Our own edges use `cores`.
    endpoints: tuple[HostPort, ...] = ()


class EdgeSiteSpec(Spec, frozen=True):
    """A place that clients connect to. `addresses` are what geo-DNS answers with."""

    city: str
    latitude: Latitude
    longitude: Longitude
    jurisdiction: Jurisdiction
    addresses: Annotated[tuple[str, ...], Meta(min_length=1)]
    port: Port = 443


class LinkSpec(Spec, frozen=True):
    """A way from an edge or a region to a region.

    `address` is the UDP `host:port` at which `source` reaches `target` over this link, when it
    is not the region's own (an SD-WAN underlay, or the lab's WAN emulator).
    """

    source: Annotated[
        str,
        Meta(
            pattern=r"^(EdgeSite|Region)/[a-z0-9.-]+$",
            extra_json_schema={"description": "EdgeSite/<name> or Region/<name>"},
        ),
    ]
    target: Annotated[
        str,
        Meta(
            pattern=r"^Region/[a-z0-9.-]+$",
            extra_json_schema={"description": "Region/<name>"},
        ),
    ]
    rtt_ms: Positive  # expected round-trip time, until the overlay has measured it
    cost_per_gib: Annotated[float, Meta(ge=0)] = 0.0
    address: HostPort | None = None


class ModelSpec(Spec, frozen=True):
    """A model and the regions that hold its weights."""

    regions: Annotated[tuple[Name, ...], Meta(min_length=1)]
    context_tokens: Annotated[int, Meta(gt=0)]  # prompt and answer; a core may hold fewer
    default_output_tokens: Annotated[int, Meta(gt=0)] = 512  # at most, when a request names none
    owned_by: str = "tradewind"
    created_s: int = 0  # Unix time, for /v1/models
    cache_ttl_s: Annotated[float, Meta(ge=0)] = 300.0  # 0 turns the response cache off
    # Another model, cheaper to run, that answers in its place when its regions are full: the same
    # weights in int8, say. Who may use this one may be answered by that.
    substitute: ModelName | None = None


class RouteSpec(Spec, frozen=True):
    """Which regions may serve which models for which tenants, and in what order of preference.

    `latency` takes the region with the shortest path first, `ordered` the one listed first.
    """

    models: Annotated[tuple[Selector, ...], Meta(min_length=1)]
    tenants: Annotated[tuple[Selector, ...], Meta(min_length=1)]
    regions: Annotated[tuple[Name, ...], Meta(min_length=1)]
    prefer: Literal["latency", "ordered"] = "latency"


class RateLimit(Spec, frozen=True):
    """What a tenant may ask of all edges together. `burst_s`: how much may come at once, as
    seconds of the rate."""

    requests_per_s: Positive
    burst_s: Annotated[float, Meta(ge=0.01, le=60)] = 1.0
    tokens_per_s: Positive | None = None  # of input and answers; none: requests alone count


class TenantSpec(Spec, frozen=True):
    """A customer. API keys are stored as `sha256:<hex>`; residency names jurisdictions."""

    tier: Literal["vip", "standard", "batch"] = "standard"
    api_keys: Annotated[
        tuple[
            Annotated[
                str,
                Meta(
                    pattern=r"^sha256:[0-9a-f]{64}$",
                    extra_json_schema={
                        "description": "sha256:<64 hex digits>, from `tradewind tenant hash-key`"
                    },
                ),
            ],
            ...,
        ],
        Meta(max_length=64),
    ] = ()
    models: Annotated[tuple[Selector, ...], Meta(min_length=1)] = (ANY,)
    residency: Annotated[tuple[Jurisdiction, ...], Meta(min_length=1)] | None = None
    deadline_ms: Annotated[int, Meta(gt=0, le=3_600_000)] = 60_000
    limit: RateLimit | None = None  # none: as much as the regions can do
    # Where tenants of one tier wait for the same place, they are served in these proportions.
    weight: Annotated[float, Meta(ge=0.01, le=100)] = 1.0


class Nameserver(Spec, frozen=True):
    """A name server of a zone, and its addresses where it lies inside the zone."""

    name: str
    addresses: tuple[str, ...] = ()


class ZoneName(Spec, frozen=True):
    """One geo-answered name. `name` is relative to the zone, `@` is the zone itself."""

    name: str
    edges: Annotated[tuple[Selector, ...], Meta(min_length=1)]
    answers: Annotated[int, Meta(ge=1, le=8)] = 2


class ZoneSpec(Spec, frozen=True):
    """A DNS zone served by geo-DNS; the resource's name is its origin."""

    contact: str  # SOA RNAME, as an e-mail address
    nameservers: Annotated[tuple[Nameserver, ...], Meta(min_length=1)]
    names: Annotated[tuple[ZoneName, ...], Meta(min_length=1)]
    ttl_s: Annotated[int, Meta(ge=0, le=86_400)] = 30
    negative_ttl_s: Annotated[int, Meta(ge=0, le=86_400)] = 30
    refresh_s: int = 3600
    retry_s: int = 600
    expire_s: int = 604_800


class OverrideSpec(Spec, frozen=True):
    """An operator's decision about a region: it outranks whatever is automatic.

    `drain` moves `percent` of the region's requests elsewhere; `failover` does the same and
    says that nothing may return by itself. With `over_s` it is paced: the director goes from
    `from_percent` to `percent` in that time, slower while the receiving regions suffer, and what
    holds meanwhile is in `topology.directive.Directive.drains`.
    """

    region: Name
    action: Literal["drain", "failover"]
    reason: Annotated[str, Meta(min_length=1, max_length=500)]
    percent: Percent = 100.0
    expires_s: UnixTime | None = None  # after which it no longer counts
    over_s: Annotated[float, Meta(ge=0, le=604_800)] = 0.0  # 0: at once
    from_percent: Percent = 0.0  # where a paced one begins
    # Answers that a full drain still finds there so long after it began go on elsewhere, unless
    # nobody else may give them; none: they end where they are.
    deadline_s: Annotated[float, Meta(ge=0, le=604_800)] | None = None


AnySpec: TypeAlias = (
    RegionSpec
    | EdgeSiteSpec
    | LinkSpec
    | ModelSpec
    | RouteSpec
    | TenantSpec
    | ZoneSpec
    | OverrideSpec
    | PolicySpec
)

KINDS: dict[str, type[Any]] = {
    "Region": RegionSpec,
    "EdgeSite": EdgeSiteSpec,
    "Link": LinkSpec,
    "Model": ModelSpec,
    "Route": RouteSpec,
    "Tenant": TenantSpec,
    "Zone": ZoneSpec,
    "Override": OverrideSpec,
    "Policy": PolicySpec,
}


class Key(Struct, frozen=True, order=True):
    """What names a resource: `Region/singapore`."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> Key:
        kind, _, name = text.partition("/")
        return cls(kind, name)


class Resource(Struct, frozen=True, kw_only=True):
    """One resource at one revision. `revision` 0 means that it was never stored."""

    kind: str
    name: str
    spec: AnySpec
    revision: int = 0
    author: str = ""
    time_s: float = 0.0

    @property
    def key(self) -> Key:
        return Key(self.kind, self.name)


class _Envelope(Struct, frozen=True, forbid_unknown_fields=True):
    kind: str
    name: str
    spec: Any
    revision: int = 0
    author: str = ""
    time_s: float = 0.0


def parse(raw: object, source: str) -> Resource:
    """A resource from a document, or `InvalidDocument` with every mistake in it."""
    problems = check(raw, _Envelope, source)
    if not isinstance(raw, dict):
        raise InvalidDocument(problems)
    kind, name = raw.get("kind"), raw.get("name")
    cls = KINDS.get(kind) if isinstance(kind, str) else None
    if isinstance(kind, str) and cls is None:
        problems.append(Problem(source, "kind", describe(kind), "one of " + ", ".join(KINDS)))
    if isinstance(name, str):
        problems += check(name, _NAME_OF.get(str(kind), Name), source, "name")
    if cls is not None and "spec" in raw:
        problems += check(raw["spec"], cls, source, "spec")
        problems += beyond_types(str(kind), raw["spec"], source)
    if problems or cls is None:
        raise InvalidDocument([_without_secret(problem) for problem in problems])
    envelope = convert(raw, _Envelope, source)
    return Resource(
        kind=envelope.kind,
        name=envelope.name,
        spec=convert(envelope.spec, cls, source, "spec"),
        revision=envelope.revision,
        author=envelope.author,
        time_s=envelope.time_s,
    )


def _without_secret(problem: Problem) -> Problem:
    """What stands where a hash should may well be an API key: it is not told on."""
    if not problem.path.startswith("spec.api_keys"):
        return problem
    return msgspec.structs.replace(problem, found="something else (not shown: it may be a key)")


_NAME_OF: dict[str, Any] = {"Model": ModelName}


def to_document(resource: Resource, *, stored: bool = True) -> dict[str, Any]:
    """The plain form of a resource; `stored=False` leaves out what the store adds."""
    document: dict[str, Any] = {
        "kind": resource.kind,
        "name": resource.name,
        "spec": msgspec.to_builtins(resource.spec),
    }
    if stored:
        document |= {
            "revision": resource.revision,
            "author": resource.author,
            "time_s": resource.time_s,
        }
    return document


def encode(resource: Resource) -> bytes:
    """JSON, as etcd and the wire carry it."""
    return msgspec.json.encode(to_document(resource))


def decode(data: bytes, source: str) -> Resource:
    """The reverse of `encode`; checks everything again, since anybody may write to etcd."""
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidDocument([Problem(source, "", str(error), "well-formed JSON")]) from error
    return parse(raw, source)


def json_schema() -> dict[str, Any]:
    """JSON Schema for every kind, keyed by kind under `$defs`."""
    (_, definitions) = msgspec.json.schema_components(
        list(KINDS.values()), ref_template="#/$defs/{name}"
    )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": definitions}
