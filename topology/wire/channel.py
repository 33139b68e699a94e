"""gRPC channels and servers of the mesh: mutual TLS, pings, sizes."""

from __future__ import annotations

import grpc
import grpc.aio

from runtime.identity import Identity
from topology.wire import codec

# A silent peer is found dead within PING_EVERY_MS + PING_TIMEOUT_MS. gRPC allows a client no
# shorter interval than 10 s. Both timeouts are needed: with `keepalive_timeout` alone a frozen
# peer was noticed only after `ping_timeout`'s default of a minute (measured with grpcio 1.85).
PING_EVERY_MS = 10_000
PING_TIMEOUT_MS = 5_000
# Error details travel in trailing metadata, for which gRPC allows 8 KiB unless told otherwise.
MAX_METADATA_BYTES = 64 * 1024
HANDSHAKE_TIMEOUT_MS = 10_000
MAX_STREAMS = 512  # on one connection; gRPC's default is no limit

Options = list[tuple[str, int | str]]


def client_options() -> Options:
    return [
        ("grpc.ssl_target_name_override", codec.CONTROL_PLANE_NAME),
        ("grpc.keepalive_time_ms", PING_EVERY_MS),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", codec.MAX_RESPONSE_BYTES),
        ("grpc.max_send_message_length", codec.MAX_REQUEST_BYTES),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        # One TCP connection per channel: closing the channel closes it.
        ("grpc.use_local_subchannel_pool", 1),
        # The caller decides when to try again and where.
        ("grpc.enable_retries", 0),
    ]


def client_credentials(identity: Identity) -> grpc.ChannelCredentials:
    """Of the identity's newest files: a channel opened later shows what was renewed meanwhile."""
    newest = identity.newest
    return grpc.ssl_channel_credentials(newest.ca_pem, newest.key_pem, newest.certificate_pem)


def open_channel(endpoint: str, identity: Identity) -> grpc.aio.Channel:
    """A channel to a control-plane replica at `host:port`, whose certificate must say so."""
    return grpc.aio.secure_channel(endpoint, client_credentials(identity), client_options())


def server_options() -> Options:
    return [
        ("grpc.keepalive_time_ms", PING_EVERY_MS),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", PING_EVERY_MS // 2),
        ("grpc.max_receive_message_length", codec.MAX_REQUEST_BYTES),
        ("grpc.max_send_message_length", codec.MAX_RESPONSE_BYTES),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        # Whoever connects and says nothing is dropped; a peer opens no more streams than this.
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        # Two replicas never share a port by accident.
        ("grpc.so_reuseport", 0),
    ]


def server_credentials(identity: Identity) -> grpc.ServerCredentials:
    """Credentials that refuse, in the handshake, whoever has no certificate of our CA.

    Where the identity is watched, each handshake goes by its newest files; connections that are
    there already stay.
    """
    shown = identity.newest

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC, in a thread of its own, before each handshake. None: as before."""
        nonlocal shown
        newest = identity.newest
        if newest is shown:
            return None
        shown = newest
        return _configuration(newest)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(shown),
        renewed,  # type: ignore[arg-type]  # the stubs leave None out
        require_client_authentication=True,
    )


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key_pem, identity.certificate_pem)], root_certificates=identity.ca_pem
    )
