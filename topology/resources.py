"""The one definition of each resource. Schemas, docs and wire forms are derived from here.

A resource is `kind`, `name`, `spec`; the store adds `revision`, `author` and `time_s`. People
write YAML, etcd holds JSON under `/tradewind/v1/<kind>/<name>`.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from runtime.validation import InvalidDocument, Problem, check, convert, describe

ANY = "*"

Name: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$",
        extra_json_schema={
            "description": "a name of 1 to 63 lower-case letters, digits, '-' and '.'"
        },
    ),
]
Selector: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^(\*|[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?)$",
        extra_json_schema={"description": "a name, or '*' for all"},
    ),
]
ModelName: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?$",
        extra_json_schema={
            "description": "a model name of letters, digits, '-', '_' and '.' (128 at most)"
        },
    ),
]
Latitude: TypeAlias = Annotated[float, Meta(ge=-90, le=90)]
Longitude: TypeAlias = Annotated[float, Meta(ge=-180, le=180)]
Percent: TypeAlias = Annotated[float, Meta(ge=0, le=100)]
UnixTime: TypeAlias = Annotated[
    float,
    Meta(
        ge=0,
        lt=253_402_300_800,  # what a calendar of four-digit years can show
        extra_json_schema={"description": "seconds since 1970, before the year 10000"},
    ),
]
Jurisdiction: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[A-Z]{2}$",
        extra_json_schema={"description": "a two-letter jurisdiction such as SG, EU or AE"},
    ),
]
HostPort: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$",
        extra_json_schema={"description": "host:port"},
    ),
]
Positive: TypeAlias = Annotated[float, Meta(gt=0)]
Port: TypeAlias = Annotated[int, Meta(ge=1, le=65535)]


class Spec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base of every `spec`: frozen, and closed to fields it does not know."""


class RegionSpec(Spec, frozen=True):
    """A place that runs full models. `cores` are the overlay addresses, UDP `host:port`."""

    city: str
    latitude: Latitude
    longitude: Longitude
    jurisdiction: Jurisdiction
    cores: Annotated[tuple[HostPort, ...], Meta(min_length=1)]
    capacity_tokens_per_s: Positive  # decoded tokens the region sustains


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


class RouteSpec(Spec, frozen=True):
    """Which regions may serve which models for which tenants, and in what order of preference.

    `latency` takes the region with the shortest path first, `ordered` the one listed first.
    """

    models: Annotated[tuple[Selector, ...], Meta(min_length=1)]
    tenants: Annotated[tuple[Selector, ...], Meta(min_length=1)]
    regions: Annotated[tuple[Name, ...], Meta(min_length=1)]
    prefer: Literal["latency", "ordered"] = "latency"


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
    says that nothing may return by itself.
    """

    region: Name
    action: Literal["drain", "failover"]
    reason: Annotated[str, Meta(min_length=1, max_length=500)]
    percent: Percent = 100.0
    expires_s: UnixTime | None = None  # after which it no longer counts


class PolicySpec(Spec, frozen=True):
    """What holds everywhere unless something narrower says otherwise. One, named `default`."""

    cache_max_bytes: Annotated[int, Meta(ge=0)] = 64 * 2**20  # per edge worker
    request_max_bytes: Annotated[int, Meta(ge=1024)] = 2 * 2**20
    attempts: Annotated[int, Meta(ge=1, le=3)] = 3  # regions tried for one request, at most
    first_token_timeout_ms: Annotated[int, Meta(gt=0)] = 20_000


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
        problems += _beyond_types(str(kind), raw["spec"], source)
    if problems or cls is None:
        raise InvalidDocument(problems)
    envelope = convert(raw, _Envelope, source)
    return Resource(
        kind=envelope.kind,
        name=envelope.name,
        spec=convert(envelope.spec, cls, source, "spec"),
        revision=envelope.revision,
        author=envelope.author,
        time_s=envelope.time_s,
    )


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


# What the types alone cannot say.

_HOST_NAME = re.compile(r"^([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_-]{1,63}\.?$", re.I)
_EMAIL = re.compile(r"^[^@\s]+@[^@\s]+$")


def _beyond_types(kind: str, spec: object, source: str) -> list[Problem]:
    if not isinstance(spec, dict):
        return []
    problems: list[Problem] = []

    def require(good: bool, path: str, found: object, allowed: str) -> None:
        if not good:
            problems.append(Problem(source, path, describe(found), allowed))

    match kind:
        case "EdgeSite":
            for index, address in enumerate(_list(spec.get("addresses"))):
                require(_is_address(address), f"spec.addresses[{index}]", address, "an IP address")
        case "Region":
            for index, core in enumerate(_list(spec.get("cores"))):
                require(
                    _port_fits(core), f"spec.cores[{index}]", core, "host:port, port 1 to 65535"
                )
        case "Link":
            require(
                spec.get("source") != spec.get("target") or not spec.get("source"),
                "spec.target",
                spec.get("target"),
                "a region other than the source",
            )
            address = spec.get("address")
            require(
                address is None or _port_fits(address),
                "spec.address",
                address,
                "host:port, port 1 to 65535",
            )
        case "Zone":
            contact = spec.get("contact")
            if isinstance(contact, str):
                require(bool(_EMAIL.match(contact)), "spec.contact", contact, "an e-mail address")
            for index, server in enumerate(_list(spec.get("nameservers"))):
                if not isinstance(server, dict):
                    continue
                name = server.get("name")
                if isinstance(name, str):
                    path = f"spec.nameservers[{index}].name"
                    require(bool(_HOST_NAME.match(name)), path, name, "a host name")
                for j, address in enumerate(_list(server.get("addresses"))):
                    path = f"spec.nameservers[{index}].addresses[{j}]"
                    require(_is_address(address), path, address, "an IP address")
            for index, entry in enumerate(_list(spec.get("names"))):
                name = entry.get("name") if isinstance(entry, dict) else None
                if isinstance(name, str) and name != "@":
                    path = f"spec.names[{index}].name"
                    require(bool(_HOST_NAME.match(name)), path, name, "a host name or '@'")
    return problems


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _is_address(value: object) -> bool:
    if not isinstance(value, str):
        return True  # the type check has said so already
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def _port_fits(value: object) -> bool:
    if not isinstance(value, str):
        return True
    port = value.rpartition(":")[2]
    return not port.isdigit() or 1 <= int(port) <= 65535
