"""The lab's geography: cities, addresses, distances, tenants; and the resources they make.

Addresses lie in 127.0.0.0/8, one per process, so that a packet's address says who sent it.
Client subnets lie in 198.18.0.0/15, which RFC 2544 sets aside for benchmarks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from topology.latency import published_rtt_ms

# Three cores share this machine: one has far more to give than the third that it gives now.
CAPACITY_TOKENS_PER_S = 400
ZONE = "tradewind.test"
SERVICE = f"api.{ZONE}"
MODEL = "smollm2-135m-instruct"
EDGE_PORT = 8080
OVERLAY_PORT = 4433
CORE_HTTP_PORT = 8000
DNS_PORT = 5300
ADMIN_PORT = 7400


class City(Struct, frozen=True):
    """A place on the map and the subnet its clients live in."""

    name: str
    latitude: float
    longitude: float
    subnet: str

    @property
    def slug(self) -> str:
        return self.name.lower().replace(" ", "-")

    @property
    def client_address(self) -> str:
        """An address in the city's subnet, as a resolver there would report it."""
        return self.subnet.removesuffix("0/24") + "7"


class RegionSite(Struct, frozen=True):
    """A region core and where it listens."""

    city: City
    jurisdiction: str
    address: str

    @property
    def name(self) -> str:
        return self.city.slug

    @property
    def overlay(self) -> str:
        return f"{self.address}:{OVERLAY_PORT}"

    @property
    def http(self) -> str:
        return f"{self.address}:{CORE_HTTP_PORT}"


class EdgePlace(Struct, frozen=True):
    """An edge and the address that geo-DNS answers with."""

    city: City
    jurisdiction: str
    address: str

    @property
    def name(self) -> str:
        return self.city.slug

    @property
    def url(self) -> str:
        return f"http://{self.address}:{EDGE_PORT}"


class WanPath(Struct, frozen=True):
    """One emulated underlay path: what dials `listen` reaches `target` after `rtt_ms`/2."""

    name: str
    source: str  # EdgeSite/<name> or Region/<name>
    target: str  # Region/<name>
    listen: str
    forward_to: str
    rtt_ms: float


def _city(index: int, name: str, latitude: float, longitude: float) -> City:
    return City(name, latitude, longitude, f"198.18.{index}.0/24")


TOKYO = _city(1, "Tokyo", 35.68, 139.69)
MUMBAI = _city(2, "Mumbai", 19.08, 72.88)
RIYADH = _city(3, "Riyadh", 24.71, 46.68)
LONDON = _city(4, "London", 51.51, -0.13)
SAO_PAULO = _city(5, "Sao Paulo", -23.55, -46.63)
SYDNEY = _city(6, "Sydney", -33.87, 151.21)
SINGAPORE = _city(21, "Singapore", 1.35, 103.82)
FRANKFURT = _city(22, "Frankfurt", 50.11, 8.68)
DUBAI = _city(23, "Dubai", 25.20, 55.27)

CLIENT_CITIES = (
    TOKYO,
    MUMBAI,
    RIYADH,
    LONDON,
    SAO_PAULO,
    SYDNEY,
    _city(7, "Virginia", 39.04, -77.49),
    _city(8, "Bahrain", 26.07, 50.56),
    _city(9, "Hong Kong", 22.32, 114.17),
    _city(10, "Seoul", 37.57, 126.98),
    _city(11, "Tel Aviv", 32.07, 34.78),
    _city(12, "Berlin", 52.52, 13.40),
)

REGIONS = (
    RegionSite(SINGAPORE, "SG", "127.20.1.1"),
    RegionSite(FRANKFURT, "EU", "127.20.2.1"),
    RegionSite(DUBAI, "AE", "127.20.3.1"),
)

EDGES = (
    EdgePlace(TOKYO, "JP", "127.10.1.1"),
    EdgePlace(MUMBAI, "IN", "127.10.2.1"),
    EdgePlace(RIYADH, "SA", "127.10.3.1"),
    EdgePlace(LONDON, "GB", "127.10.4.1"),
    EdgePlace(SAO_PAULO, "BR", "127.10.5.1"),
    EdgePlace(SYDNEY, "AU", "127.10.6.1"),
)


class TenantPlan(Struct, frozen=True):
    """A tenant of the lab, before its keys are made."""

    name: str
    tier: str
    residency: tuple[str, ...] | None = None
    deadline_ms: int | None = None  # none: the default of `TenantSpec`


TENANTS = (
    TenantPlan("acme", "vip", None),
    TenantPlan("globex", "standard", None),
    # A bank whose data may rest in the Gulf or the EU and nowhere else.
    TenantPlan("gulfbank", "standard", ("AE", "EU")),
)

_NOTHING: Mapping[str, Any] = {}


class World(Struct, frozen=True):
    """What a lab consists of. The mappings are laid over what the lab would write anyway."""

    regions: tuple[RegionSite, ...] = REGIONS
    edges: tuple[EdgePlace, ...] = EDGES
    tenants: tuple[TenantPlan, ...] = TENANTS
    core: Mapping[str, Any] = _NOTHING  # settings of every core
    edge: Mapping[str, Any] = _NOTHING  # settings of every edge
    model: Mapping[str, Any] = _NOTHING  # of the spec of `Model`
    policy: Mapping[str, Any] = _NOTHING  # the spec of `Policy`; nothing: none is written
    capacity_tokens_per_s: float = CAPACITY_TOKENS_PER_S  # of each region
    dns: bool = True  # whether geo-DNS runs

    def wan_paths(self) -> tuple[WanPath, ...]:
        """Every edge-core and core-core link, with its published round-trip time."""
        paths = []
        sources = [("EdgeSite", e.name, e.city, f"127.30.{i}") for i, e in enumerate(self.edges, 1)]
        sources += [
            ("Region", r.name, r.city, f"127.31.{i}") for i, r in enumerate(self.regions, 1)
        ]
        for kind, name, city, network in sources:
            for index, region in enumerate(self.regions, 1):
                if city is not region.city:
                    listen = f"{network}.{index}:{OVERLAY_PORT}"
                    paths.append(_wan_path(kind, name, city, region, listen))
        return tuple(paths)

    def resources(self, key_hashes: Mapping[str, str]) -> list[dict[str, Any]]:
        """The documents that `tradewind apply` takes. `key_hashes`: tenant -> `sha256:<hex>`."""
        names = [region.name for region in self.regions]
        documents: list[dict[str, Any]] = []

        def add(kind: str, name: str, spec: dict[str, Any]) -> None:
            documents.append({"kind": kind, "name": name, "spec": spec})

        for region in self.regions:
            add("Region", region.name, _region_spec(region, self.capacity_tokens_per_s))
        for edge in self.edges:
            add("EdgeSite", edge.name, _edge_spec(edge))
        for path in self.wan_paths():
            add("Link", path.name, _link_spec(path))
        model = {"regions": names, "context_tokens": 2048, "default_output_tokens": 64}
        add("Model", MODEL, model | dict(self.model))
        add("Route", "nearest", {"models": ["*"], "tenants": ["*"], "regions": names})
        for tenant in self.tenants:
            add("Tenant", tenant.name, _tenant_spec(tenant, key_hashes[tenant.name]))
        if self.policy:
            add("Policy", "default", dict(self.policy))
        add("Zone", ZONE, _zone_spec())
        return documents


WORLD = World()


def prefix_table() -> list[dict[str, Any]]:
    """Where each client subnet lies, as geo-DNS reads it."""
    return [
        {
            "prefix": city.subnet,
            "city": city.name,
            "latitude": city.latitude,
            "longitude": city.longitude,
        }
        for city in CLIENT_CITIES
    ]


def _wan_path(kind: str, name: str, city: City, region: RegionSite, listen: str) -> WanPath:
    rtt_ms = published_rtt_ms(city.name, region.city.name)
    if rtt_ms is None:
        raise LookupError(f"no published latency from {city.name} to {region.city.name}")
    return WanPath(
        f"{name}-{region.name}",
        f"{kind}/{name}",
        f"Region/{region.name}",
        listen,
        region.overlay,
        rtt_ms,
    )


def _link_spec(path: WanPath) -> dict[str, Any]:
    return {
        "source": path.source,
        "target": path.target,
        "rtt_ms": path.rtt_ms,
        "address": path.listen,
    }


def _tenant_spec(tenant: TenantPlan, key_hash: str) -> dict[str, Any]:
    spec: dict[str, Any] = {"tier": tenant.tier, "api_keys": [key_hash]}
    if tenant.residency is not None:
        spec["residency"] = list(tenant.residency)
    if tenant.deadline_ms is not None:
        spec["deadline_ms"] = tenant.deadline_ms
    return spec


def _place(city: City, jurisdiction: str) -> dict[str, Any]:
    return {
        "city": city.name,
        "latitude": city.latitude,
        "longitude": city.longitude,
        "jurisdiction": jurisdiction,
    }


def _region_spec(region: RegionSite, capacity_tokens_per_s: float) -> dict[str, Any]:
    place = _place(region.city, region.jurisdiction)
    return place | {
        "cores": [region.overlay],
        "capacity_tokens_per_s": capacity_tokens_per_s,
        "endpoints": [region.http],
    }


def _edge_spec(edge: EdgePlace) -> dict[str, Any]:
    place = _place(edge.city, edge.jurisdiction)
    return place | {"addresses": [edge.address], "port": EDGE_PORT}


def _zone_spec() -> dict[str, Any]:
    return {
        "contact": f"hostmaster@{ZONE}",
        "nameservers": [{"name": f"ns1.{ZONE}", "addresses": ["127.0.0.1"]}],
        "names": [{"name": "api", "edges": ["*"], "answers": 2}],
        "ttl_s": 5,
    }
