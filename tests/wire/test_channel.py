"""gRPC ignores an option that it does not know, and says nothing."""

from __future__ import annotations

from pathlib import Path

from grpc._cython import cygrpc  # type: ignore[attr-defined]

from topology.wire import channel


def test_grpc_knows_every_option() -> None:
    # Under a wrong name, the server took its clients' pings for a nuisance and closed their
    # connections once a minute, with ENHANCE_YOUR_CALM.
    library = Path(cygrpc.__file__).read_bytes()
    options = channel.client_options() + channel.server_options()
    unknown = [name for name, _ in options if name.encode() not in library]
    assert not unknown


def test_a_server_expects_pings_more_often_than_its_clients_send_them() -> None:
    server = dict(channel.server_options())
    client = dict(channel.client_options())
    allowed_ms = int(server["grpc.http2.min_ping_interval_without_data_ms"])
    assert allowed_ms < int(client["grpc.keepalive_time_ms"])
