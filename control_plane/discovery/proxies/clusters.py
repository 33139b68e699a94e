"""Clusters and their endpoints, in xDS's terms: one cluster per demand class. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2, outlier_detection_pb2
from envoy.config.core.v3 import address_pb2, base_pb2, config_source_pb2, protocol_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import UInt32Value

from control_plane.discovery.proxies.node import Profile
from control_plane.discovery.proxies.spread import World, spread_for
from topology.demand import DemandClass

CONNECT_TIMEOUT_S = 5
# Outlier detection: an endpoint that fails five times in a row is left out for 30 s times the
# number of times that this happened; looked at every 10 s. The last endpoint may go too, since
# the next priority then takes over.
EJECT_AFTER = 5
EJECT_INTERVAL_S = 10
EJECT_S = 30
# Retries: at most a fifth of the requests that are open, and three however few there are.
RETRY_BUDGET_PERCENT = 20.0
RETRIES_MIN = 3
# What is open or waits, per cluster and priority. Envoy's own 1,024 connections are few for
# streams of tokens, and HTTP/1.1 needs a connection for each.
OPEN_MAX = 8_192
_WEIGHTS = 10_000  # what the weights of a priority add up to
_MILLION = 1_000_000
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def cluster_for(profile: Profile, demand: DemandClass) -> cluster_pb2.Cluster:
    """The cluster of a demand class. It does not depend on where its regions stand: drains,
    failures and shares move endpoints alone, so that no connection is lost for them."""
    cluster = cluster_pb2.Cluster(
        name=str(demand),
        type=cluster_pb2.Cluster.EDS,
        eds_cluster_config=cluster_pb2.Cluster.EdsClusterConfig(eds_config=over_ads()),
        connect_timeout=Duration(seconds=CONNECT_TIMEOUT_S),
        lb_policy=cluster_pb2.Cluster.LEAST_REQUEST,
        common_lb_config=cluster_pb2.Cluster.CommonLbConfig(
            # Ejected endpoints are used again only when all of them are ejected.
            healthy_panic_threshold=percent_pb2.Percent(value=1.0),
            locality_weighted_lb_config=(
                cluster_pb2.Cluster.CommonLbConfig.LocalityWeightedLbConfig()
            ),
        ),
        outlier_detection=_outlier_detection(),
        circuit_breakers=_circuit_breakers(),
    )
    if profile.flavour == "grpc":
        # gRPC's core knows round robin and ring hash, and refuses a cluster that asks for more.
        cluster.lb_policy = cluster_pb2.Cluster.ROUND_ROBIN
    else:
        cluster.typed_extension_protocol_options[_HTTP_OPTIONS].Pack(_protocol(profile))
    return cluster


def endpoints_for(
    world: World, profile: Profile, demand: DemandClass
) -> endpoint_pb2.ClusterLoadAssignment:
    """Where the requests of a demand class go now.

    Priority 0 holds the regions that have a share, weighted by it; each region that stands by is
    a priority of its own, nearest first. A region that is drained or down is not there at all.
    """
    spread = spread_for(world, profile, demand)
    taken: set[tuple[str, int]] = set()
    assignment = endpoint_pb2.ClusterLoadAssignment(cluster_name=str(demand))
    weights = {r: max(1, round(share * _WEIGHTS)) for r, share in spread.shares.items()}
    groups = [list(weights.items()), *([(region, _WEIGHTS)] for region in spread.standby)]
    priority = 0
    for group in groups:
        localities = list(_localities(world, group, priority, taken))
        assignment.endpoints.extend(localities)
        priority += bool(localities)
    if spread.refused > 0:
        drop = assignment.policy.drop_overloads.add(category="refused")
        drop.drop_percentage.numerator = min(_MILLION, round(spread.refused * _MILLION))
        drop.drop_percentage.denominator = percent_pb2.FractionalPercent.MILLION
    return assignment


def over_ads() -> config_source_pb2.ConfigSource:
    return config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(), resource_api_version=config_source_pb2.V3
    )


def address(host: str, port: int) -> address_pb2.Address:
    return address_pb2.Address(
        socket_address=address_pb2.SocketAddress(address=host, port_value=port)
    )


def usable(endpoint: str) -> tuple[str, int] | None:
    """Host and port of a Region's endpoint where the host is an IP address: EDS takes no names."""
    host, _, port = endpoint.rpartition(":")
    try:
        return str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))), int(port)
    except ValueError:
        return None


def _localities(
    world: World, group: list[tuple[str, int]], priority: int, taken: set[tuple[str, int]]
) -> Iterator[endpoint_components_pb2.LocalityLbEndpoints]:
    for region, weight in group:
        locality = endpoint_components_pb2.LocalityLbEndpoints(
            locality=base_pb2.Locality(region=region),
            load_balancing_weight=UInt32Value(value=weight),
            priority=priority,
        )
        for text in world.snapshot.regions[region].endpoints:
            found = usable(text)
            if found is None or found in taken:  # gRPC refuses an address that is there twice
                continue
            taken.add(found)
            locality.lb_endpoints.add().endpoint.address.CopyFrom(address(*found))
        if locality.lb_endpoints:
            yield locality


def _outlier_detection() -> outlier_detection_pb2.OutlierDetection:
    return outlier_detection_pb2.OutlierDetection(
        consecutive_5xx=UInt32Value(value=EJECT_AFTER),
        interval=Duration(seconds=EJECT_INTERVAL_S),
        base_ejection_time=Duration(seconds=EJECT_S),
        max_ejection_percent=UInt32Value(value=100),
        # By comparison with other endpoints means nothing among regions of unequal distance.
        enforcing_success_rate=UInt32Value(value=0),
    )


def _circuit_breakers() -> circuit_breaker_pb2.CircuitBreakers:
    limit = UInt32Value(value=OPEN_MAX)
    threshold = circuit_breaker_pb2.CircuitBreakers.Thresholds(
        max_connections=limit,
        max_pending_requests=limit,
        max_requests=limit,
        retry_budget=circuit_breaker_pb2.CircuitBreakers.Thresholds.RetryBudget(
            budget_percent=percent_pb2.Percent(value=RETRY_BUDGET_PERCENT),
            min_retry_concurrency=UInt32Value(value=RETRIES_MIN),
        ),
    )
    return circuit_breaker_pb2.CircuitBreakers(thresholds=[threshold])


def _protocol(profile: Profile) -> http_protocol_options_pb2.HttpProtocolOptions:
    options = http_protocol_options_pb2.HttpProtocolOptions()
    if profile.upstream == "http2":
        options.explicit_http_config.http2_protocol_options.CopyFrom(
            protocol_pb2.Http2ProtocolOptions()
        )
    else:
        options.explicit_http_config.http_protocol_options.CopyFrom(
            protocol_pb2.Http1ProtocolOptions()
        )
    return options
