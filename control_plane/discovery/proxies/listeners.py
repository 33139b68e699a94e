"""The listener: for Envoy a socket with HTTP on it, for gRPC the name that is dialled. Pure."""

from __future__ import annotations

from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm,
)
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import BoolValue

from control_plane.discovery.proxies.clusters import address, over_ads
from control_plane.discovery.proxies.node import Profile
from control_plane.discovery.proxies.routes import NAME

# How long a client may take for its headers, so that slow ones hold no connection for ever.
_HEADERS_TIMEOUT_S = 10
_IDLE_TIMEOUT_S = 300
_BUFFER_BYTES = 2 * 2**20


def listener_for(profile: Profile) -> listener_pb2.Listener:
    """It depends on the proxy alone: a listener that changes is opened anew, which closes its
    connections."""
    listener = listener_pb2.Listener(name=NAME)
    if profile.flavour == "grpc":
        listener.api_listener.api_listener.Pack(_manager(profile))
        return listener
    listener.address.CopyFrom(address(*profile.listen))
    # Of a request: what a retry must still have in hand. Larger ones are not tried again.
    listener.per_connection_buffer_limit_bytes.value = _BUFFER_BYTES
    chain = listener.filter_chains.add()
    chain.filters.add(name="http").typed_config.Pack(_manager(profile))
    return listener


def _manager(profile: Profile) -> hcm.HttpConnectionManager:
    manager = hcm.HttpConnectionManager(
        stat_prefix=NAME, rds=hcm.Rds(config_source=over_ads(), route_config_name=NAME)
    )
    router = manager.http_filters.add(name="envoy.filters.http.router")
    router.typed_config.Pack(router_pb2.Router())
    if profile.flavour == "envoy":
        manager.use_remote_address.CopyFrom(BoolValue(value=True))
        manager.normalize_path.CopyFrom(BoolValue(value=True))
        manager.request_headers_timeout.CopyFrom(Duration(seconds=_HEADERS_TIMEOUT_S))
        manager.common_http_protocol_options.idle_timeout.CopyFrom(
            Duration(seconds=_IDLE_TIMEOUT_S)
        )
    return manager
