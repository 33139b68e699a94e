"""Fails when aioquic changes under us.

topology/overlay/transport.py and receipt.py replace some of aioquic's methods and lean on others.
A digest that differs means: read what changed, adapt them, run tests/overlay, then put the new
digest here. `python -m tests.overlay.test_aioquic` prints them.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from typing import Any

import pytest
from aioquic import tls
from aioquic.quic import packet_builder, recovery
from aioquic.quic import stream as quic_stream
from aioquic.quic.connection import QuicConnection

REPLACED = (
    QuicConnection._write_application,  # the schedule of streams
    QuicConnection._write_stream_frame,
    QuicConnection._write_stream_limits,
    QuicConnection._write_reset_stream_frame,
    QuicConnection._write_stop_sending_frame,
    QuicConnection._handle_stream_frame,
    QuicConnection._handle_datagram_frame,
    QuicConnection._payload_received,
    QuicConnection.receive_datagram,
    QuicConnection.send_stream_data,
    QuicConnection._on_max_stream_data_delivery,
)
LEANED_ON = (
    QuicConnection._get_or_create_stream,
    QuicConnection._get_or_create_stream_for_send,
    QuicConnection._unblock_streams,
    QuicConnection._handle_max_data_frame,
    QuicConnection._handle_max_stream_data_frame,
    QuicConnection._handle_reset_stream_frame,
    QuicConnection._handle_stop_sending_frame,
    QuicConnection._handle_connection_close_frame,
    QuicConnection._handle_crypto_frame,
    QuicConnection._handle_handshake_done_frame,
    QuicConnection._initialize,
    QuicConnection._update_traffic_key,
    QuicConnection._write_ack_frame,
    QuicConnection._write_connection_limits,
    QuicConnection.datagrams_to_send,
    QuicConnection.get_timer,
    quic_stream.QuicStreamReceiver,
    quic_stream.QuicStreamSender,
    packet_builder.QuicPacketBuilder.start_frame,
    packet_builder.QuicPacketBuilder.start_packet,
    QuicConnection._write_ping_frame,
    QuicConnection._on_ping_delivery,
    QuicConnection._flush_builder,
    QuicConnection._parse_transport_parameters,
    recovery.QuicPacketRecovery.on_ack_received,
    recovery.QuicPacketSpace,
    recovery.QuicPacketPacer,
    tls.Context._server_handle_certificate,
    tls.Context._server_handle_certificate_verify,
    tls.Context._server_handle_finished,
    tls.Context._client_handle_certificate,
    tls.Context._client_handle_certificate_verify,
    tls.Context._client_handle_finished,
    tls.Context._check_certificate_verify_signature,
    tls.verify_certificate,
)
DIGESTS: dict[str, str] = {
    "QuicConnection._handle_datagram_frame": "aa67934d4e6cf9d8",
    "QuicConnection._write_ping_frame": "56486a49b9c8fee1",
    "QuicConnection._on_ping_delivery": "e5f765225aa453c0",
    "QuicConnection._flush_builder": "e9af950cd4f2746b",
    "QuicConnection._parse_transport_parameters": "5c28538f67d67f00",
    "QuicPacketRecovery.on_ack_received": "cdc42233b9160872",
    "QuicConnection._write_application": "15654572017a34df",
    "QuicConnection._write_stream_frame": "cab85e4b7e0bdc13",
    "QuicConnection._write_stream_limits": "0cdfeae3d36f6e13",
    "QuicConnection._write_reset_stream_frame": "3a4626695031f742",
    "QuicConnection._write_stop_sending_frame": "f4e632794264dece",
    "QuicConnection._handle_stream_frame": "7e6a94dfc556f11b",
    "QuicConnection._payload_received": "f107092005ad9f28",
    "QuicConnection.receive_datagram": "b5a9d76d2103cf63",
    "QuicConnection.send_stream_data": "961b87a71a056151",
    "QuicConnection._on_max_stream_data_delivery": "3b5c2ed67608a462",
    "QuicConnection._get_or_create_stream": "1ac62a6d5275a217",
    "QuicConnection._get_or_create_stream_for_send": "f7c857ebff4d9ba9",
    "QuicConnection._unblock_streams": "a816fd164c132499",
    "QuicConnection._handle_max_data_frame": "b4497111ac484dcb",
    "QuicConnection._handle_max_stream_data_frame": "51a634d4b04c568b",
    "QuicConnection._handle_reset_stream_frame": "0b5ba61e51f12bd1",
    "QuicConnection._handle_stop_sending_frame": "03c7f343cacd3aa9",
    "QuicConnection._handle_connection_close_frame": "ecafa0aedf0cd4bd",
    "QuicConnection._handle_crypto_frame": "274f6ba916fbdaf2",
    "QuicConnection._handle_handshake_done_frame": "6594deda3ae4f9bb",
    "QuicConnection._initialize": "c8e110c49dbd68c1",
    "QuicConnection._update_traffic_key": "aeee00896053c5a8",
    "QuicConnection._write_ack_frame": "3514b0b689c2d337",
    "QuicConnection._write_connection_limits": "6a2572c8ca8f0ff2",
    "QuicConnection.datagrams_to_send": "d9b036d3b7bae57d",
    "QuicConnection.get_timer": "4f0c2964fee64e30",
    "QuicStreamReceiver": "55141955773f59c0",
    "QuicStreamSender": "11b040732c6d44a8",
    "QuicPacketBuilder.start_frame": "be761adf529f9c66",
    "QuicPacketBuilder.start_packet": "f3b01e11bbf9836c",
    "QuicPacketSpace": "13b00a41b4c2a7ba",
    "QuicPacketPacer": "bd328acc7975dc5f",
    "Context._server_handle_certificate": "ee4c22f0f17a0e65",
    "Context._server_handle_certificate_verify": "267b33b3cadbca8e",
    "Context._server_handle_finished": "4d3a81f48f0b6d08",
    "Context._client_handle_certificate": "85f12d816048de38",
    "Context._client_handle_certificate_verify": "99c07397805834d9",
    "Context._client_handle_finished": "7cfd5748687d6764",
    "Context._check_certificate_verify_signature": "4b6d2af54d0e5fb5",
    "verify_certificate": "7cdfd64c0ada6fdd",
}


def digest(thing: Any) -> str:
    """Of the code alone: comments and blank lines may change."""
    lines = [re.sub(r"\s*#.*", "", line).rstrip() for line in inspect.getsource(thing).split("\n")]
    return hashlib.sha256("\n".join(line for line in lines if line).encode()).hexdigest()[:16]


@pytest.mark.parametrize("thing", REPLACED + LEANED_ON, ids=lambda thing: thing.__qualname__)
def test_aioquic_is_what_transport_was_written_against(thing: Any) -> None:
    assert digest(thing) == DIGESTS[thing.__qualname__], "see this file's first lines"


def test_every_frame_type_may_come_in_a_one_rtt_packet() -> None:
    """`_receive_frames` does not check it, since it is always so."""
    from tests.overlay.pair import Pair

    handlers = Pair().client._QuicConnection__frame_handlers  # type: ignore[attr-defined]
    assert all(tls.Epoch.ONE_RTT in epochs for _, epochs in handlers.values())


if __name__ == "__main__":
    for thing in REPLACED + LEANED_ON:
        print(f'    "{thing.__qualname__}": "{digest(thing)}",')
