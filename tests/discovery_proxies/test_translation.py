"""What the translation says in xDS's terms, and that no route leads out of a residency."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm,
)
from google.protobuf.struct_pb2 import Struct as Metadata

from control_plane.directives.state import State
from control_plane.discovery.errors import InvalidSubscription, NotAllowed
from control_plane.discovery.proxies.node import Profile, check_node_id, profile_of
from control_plane.discovery.proxies.spread import World
from control_plane.discovery.proxies.translation import (
    CLUSTER,
    ENDPOINTS,
    HELD_MAX,
    LISTENER,
    ROUTES,
    TYPES,
    Bundle,
    Translator,
)
from runtime.identity import Principal
from runtime.validation import InvalidDocument
from tests.discovery_proxies.worlds import REGIONS, drain, region, resource, tenant, world
from topology.demand import DemandClass
from topology.resources import Key

ENVOY = Profile("envoy", place="tokyo", listen=("127.0.0.1", 8080))
GRPC = Profile("grpc", place="tokyo")
NAMES = ("acme", "globex", "eurobank", "homeless")
VIP = "vip:dubai|frankfurt|singapore"


def translate(here: World, profile: Profile) -> Bundle:
    return Translator(here).bundle_for(profile)


def decoded(bundle: Bundle, url: str) -> dict[str, Any]:
    messages: dict[str, Any] = {
        CLUSTER: cluster_pb2.Cluster,
        ENDPOINTS: endpoint_pb2.ClusterLoadAssignment,
        LISTENER: listener_pb2.Listener,
        ROUTES: route_pb2.RouteConfiguration,
    }
    return {n: messages[url].FromString(p.value) for n, p in bundle.resources[url].items()}


def flat(bundle: Bundle) -> list[tuple[str, Any]]:
    """Every route with the tenant that it is for, however the flavour writes it."""
    (config,) = decoded(bundle, ROUTES).values()
    (host,) = config.virtual_hosts
    if not host.HasField("matcher"):
        return [(name, r) for r in host.routes for name in _named(r, "x-tradewind-tenant")]
    out = []
    for name, on_match in host.matcher.matcher_tree.exact_match_map.map.items():
        routes = route_components_pb2.RouteList()
        on_match.action.typed_config.Unpack(routes)
        out += [(name, route) for route in routes.routes]
    routes = route_components_pb2.RouteList()
    host.matcher.on_no_match.action.typed_config.Unpack(routes)
    return [*out, *(("", route) for route in routes.routes)]


def _named(route: Any, header: str) -> list[str]:
    for matcher in route.match.headers:
        if matcher.name == header:
            found = matcher.string_match
            alternatives = found.safe_regex.regex.split("|")
            return [name.replace("\\", "") for name in alternatives if name] or [found.exact]
    return [""]


@pytest.mark.parametrize("profile", [ENVOY, GRPC])
def test_every_route_stays_within_its_tenants_residency(profile: Profile) -> None:
    here = world(tenant("gulfbank", residency=["AE", "EU"]))
    bundle = translate(here, profile)
    sent = 0
    for name, route in flat(bundle):
        if not route.HasField("route"):
            continue
        assert name, "a request without a tenant goes nowhere"
        sent += 1
        residency = here.snapshot.tenants[name].residency
        regions = DemandClass.parse(route.route.cluster).regions
        assert residency is None or {REGIONS[r] for r in regions} <= set(residency)
        (assignment,) = (
            a for n, a in decoded(bundle, ENDPOINTS).items() if n == route.route.cluster
        )
        assert {g.locality.region for g in assignment.endpoints} <= set(regions)
    assert sent >= 7


@pytest.mark.parametrize("profile", [ENVOY, GRPC])
def test_each_cluster_that_is_named_exists_and_no_other(profile: Profile) -> None:
    bundle = translate(world(), profile)
    named = {r.route.cluster for _, r in flat(bundle) if r.HasField("route")}
    assert named == set(bundle.resources[CLUSTER]) == set(bundle.resources[ENDPOINTS])
    assert bundle.clusters == named


def test_what_the_issue_asks_of_clusters() -> None:
    cluster = decoded(translate(world(), ENVOY), CLUSTER)[VIP]
    assert cluster.lb_policy == cluster_pb2.Cluster.LEAST_REQUEST
    assert cluster.common_lb_config.HasField("locality_weighted_lb_config")
    detection = cluster.outlier_detection
    assert detection.consecutive_5xx.value == 5
    assert (detection.interval.seconds, detection.base_ejection_time.seconds) == (10, 30)
    (threshold,) = cluster.circuit_breakers.thresholds
    assert threshold.retry_budget.budget_percent.value == 20
    assert decoded(translate(world(), GRPC), CLUSTER)[VIP].lb_policy == (
        cluster_pb2.Cluster.ROUND_ROBIN
    )


def test_deadlines_and_retries() -> None:
    routes = flat(translate(world(), ENVOY))
    bank = [r.route for name, r in routes if name == "eurobank" and r.HasField("route")]
    assert {r.timeout.seconds for r in bank} == {5}
    (config,) = decoded(translate(world(), ENVOY), ROUTES).values()
    policy = config.virtual_hosts[0].retry_policy
    assert policy.retry_on.startswith("connect-failure,refused-stream,unavailable")
    assert policy.per_try_idle_timeout.seconds == 20
    assert policy.num_retries.value == 2
    once = translate(world(resource("Policy", "default", attempts=1)), ENVOY)
    (config,) = decoded(once, ROUTES).values()
    assert not config.virtual_hosts[0].HasField("retry_policy")
    bank = [r.route for n, r in flat(translate(world(), GRPC)) if n == "eurobank"]
    assert bank[0].max_stream_duration.max_stream_duration.seconds == 5


def test_weights_and_priorities() -> None:
    def groups(*more: Any) -> list[tuple[str, int, int]]:
        assignment = decoded(translate(world(*more), ENVOY), ENDPOINTS)[VIP]
        return [
            (g.locality.region, g.priority, g.load_balancing_weight.value)
            for g in assignment.endpoints
        ]

    assert groups() == [
        ("singapore", 0, 10_000),
        ("dubai", 1, 10_000),
        ("frankfurt", 2, 10_000),
    ]
    assert groups(drain("singapore", 30)) == [
        ("dubai", 0, 3_000),
        ("singapore", 0, 7_000),
        ("frankfurt", 1, 10_000),
    ]
    assert [g[0] for g in groups(drain("singapore"))] == ["dubai", "frankfurt"]


def test_what_nobody_takes_is_dropped() -> None:
    bundle = translate(world(drain("frankfurt", 30)), ENVOY)
    assignment = decoded(bundle, ENDPOINTS)["standard:frankfurt"]
    (drop,) = assignment.policy.drop_overloads
    assert drop.drop_percentage.numerator == 300_000


@pytest.mark.parametrize("endpoint", ["core.example:80", "127.0.0.1:0", "127.0.0:80", "[::g]:80"])
def test_endpoints_are_addresses(endpoint: str) -> None:
    with pytest.raises(InvalidDocument, match="endpoints"):
        region("singapore", endpoint)


def test_addresses_that_are_there_twice() -> None:
    here = world(
        region("singapore", "127.0.0.1:80", "127.0.0.1:80", "[::1]:80"),
        region("dubai", "127.0.0.1:80"),
    )
    assignment = decoded(translate(here, ENVOY), ENDPOINTS)[VIP]
    assert [g.locality.region for g in assignment.endpoints] == ["singapore", "frankfurt"]
    assert [g.priority for g in assignment.endpoints] == [0, 1]
    addresses = [e.endpoint.address.socket_address for e in assignment.endpoints[0].lb_endpoints]
    assert [a.address for a in addresses] == ["127.0.0.1", "::1"]


def test_a_drain_changes_endpoints_alone_and_nothing_is_built_twice() -> None:
    before = translate(world(), ENVOY)
    after = translate(world(drain("singapore", 30)), ENVOY)
    for url in (CLUSTER, LISTENER, ROUTES):
        assert _versions(after, url) == _versions(before, url)
    changed = {n for n, v in _versions(after, ENDPOINTS).items() if v != before_of(before, n)}
    assert changed == {n for n in after.clusters if "singapore" in n}
    # Two replicas with the same facts say the same.
    assert _versions(translate(world(), ENVOY), ROUTES) == _versions(before, ROUTES)
    here = world()
    first = Translator(here)
    moved = Translator(World(here.snapshot, State(number=3), 2_000.0), first)
    one, other = first.bundle_for(ENVOY), moved.bundle_for(ENVOY)
    for url in (CLUSTER, LISTENER, ROUTES):
        for name, packed in one.resources[url].items():
            assert other.resources[url][name] is packed
    # Proxies that differ in their sockets alone share all but the listener.
    another = first.bundle_for(Profile("envoy", place="tokyo", listen=("127.0.0.1", 8081)))
    assert another.resources[ROUTES] is one.resources[ROUTES]
    for url in (CLUSTER, ENDPOINTS):
        for name, packed in one.resources[url].items():
            assert another.resources[url][name] is packed


def test_what_is_kept_for_the_next_proxy_is_bounded() -> None:
    translator = Translator(world())
    for number in range(HELD_MAX + 10):
        translator.listeners(Profile("envoy", listen=("127.0.0.1", number + 1)))
    assert len(translator._lasting) <= HELD_MAX


def _versions(bundle: Bundle, url: str) -> dict[str, str]:
    return {name: packed.version for name, packed in bundle.resources[url].items()}


def before_of(bundle: Bundle, name: str) -> str:
    return bundle.resources[ENDPOINTS][name].version


def test_listeners() -> None:
    (listener,) = decoded(translate(world(), ENVOY), LISTENER).values()
    socket = listener.address.socket_address
    assert (socket.address, socket.port_value) == ("127.0.0.1", 8080)
    (listener,) = decoded(translate(world(), GRPC), LISTENER).values()
    manager = hcm.HttpConnectionManager()
    assert listener.api_listener.api_listener.Unpack(manager)
    assert manager.rds.route_config_name in translate(world(), GRPC).resources[ROUTES]


def test_a_proxy_of_one_tenant_is_told_of_no_other() -> None:
    for flavour in (ENVOY, GRPC):
        profile = Profile(flavour.flavour, tenant="eurobank")
        bundle = translate(world(), profile)
        assert bundle.clusters == {"standard:frankfurt"}
        text = b"".join(p.value for p in bundle.resources[ROUTES].values())
        assert b"globex" not in text
        unknown = translate(world(), Profile(flavour.flavour, tenant="nobody"))
        assert unknown.clusters == frozenset()
        assert not any(r.HasField("route") for _, r in flat(unknown))


def test_a_world_with_nothing_in_it_is_translated_too() -> None:
    here = world(without=tuple(Key("Tenant", name) for name in NAMES))
    for profile in (ENVOY, GRPC):
        bundle = translate(here, profile)
        assert bundle.clusters == frozenset()
        assert set(bundle.resources) == set(TYPES)


def node(user_agent: str = "envoy", region_name: str = "", **metadata: Any) -> base_pb2.Node:
    fields = Metadata()
    fields.update(metadata)
    return base_pb2.Node(
        user_agent_name=user_agent,
        metadata=fields,
        locality=base_pb2.Locality(region=region_name),
    )


def test_what_a_node_says_of_itself() -> None:
    assert profile_of(node()) == Profile("envoy")
    assert profile_of(node("gRPC C-core linux")).flavour == "grpc"
    assert profile_of(node(region_name="tokyo")).place == "tokyo"
    assert profile_of(node(region_name="ap-northeast-1", edge="tokyo")).place == "tokyo"
    assert profile_of(node(listen="[::]:443")).listen == ("::", 443)
    assert profile_of(node(upstream="http2", tenant="acme")) == Profile(
        "envoy", tenant="acme", upstream="http2"
    )


@pytest.mark.parametrize(
    "metadata",
    [
        {"listen": "nonsense"},
        {"listen": "0.0.0.0"},
        {"listen": "0.0.0.0:0"},
        {"listen": "0.0.0.0:65536"},
        {"listen": "example.com:80"},
        {"listen": "0.0.0.0:٨٠"},
        {"listen": 10_000},
        {"edge": ["tokyo"]},
        {"edge": "x" * 300},
        {"tenant": "x" * 300},
        {"upstream": "http3"},
    ],
)
def test_a_node_that_says_nonsense_is_told_so(metadata: dict[str, Any]) -> None:
    with pytest.raises(InvalidSubscription, match=next(iter(metadata))):
        profile_of(node(**metadata))


def test_a_node_speaks_for_itself() -> None:
    gateway = Principal("proxy", "gateway")
    assert check_node_id("proxy/gateway", gateway) == "proxy/gateway"
    assert check_node_id("proxy/gateway/7", gateway) == "proxy/gateway/7"
    for stranger in (
        "",
        "proxy/other",
        "gateway",
        "proxy/gateway/",
        "proxy/gateway2",
        "proxy/gateway/a/b",
        "proxy/gateway/" + "x" * 64,
    ):
        with pytest.raises(NotAllowed):
            check_node_id(stranger, gateway)


def test_thousands_of_tenants() -> None:
    many = [
        tenant(f"t{i}", tier="batch", residency=["EU"] if i % 2 else None) for i in range(2_000)
    ]
    for profile in (ENVOY, GRPC):
        bundle = translate(world(*many), profile)
        assert len(bundle.clusters) < 10
        (routes,) = bundle.resources[ROUTES].values()
        assert len(routes.value) < 4 * 2**20  # what gRPC takes in one message
        assert {name for name, _ in flat(bundle)} == {*(t.name for t in many), *NAMES, ""}
