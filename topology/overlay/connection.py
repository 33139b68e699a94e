"""aioquic's connection with what the overlay needs: mutual authentication, limits, speed.

What is overridden, and why a subclass: docs/decisions/0003-overlay-on-aioquic.md. The test
tests/overlay/test_aioquic.py fails when the methods that we lean on change.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, cast

from aioquic import tls
from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicReceiveContext
from aioquic.quic.packet import QuicProtocolVersion
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from runtime.identity import Identity, IdentityError, Principal
from topology.overlay import congestion
from topology.overlay.monitor import Seen
from topology.overlay.probe import MAX_FRAME_BYTES
from topology.overlay.transport import Transport
from topology.overlay.trust import Refusal, Trust

ALPN = "tradewind/1"
_ONE_RTT = tls.Epoch.ONE_RTT
_LOOK_BACK = 32  # packets, for the newest that is to be acknowledged


class _Silence:
    """aioquic logs every stream and every bad packet; counters serve us better, and faster."""

    def debug(self, *_: object) -> None: ...
    def info(self, *_: object) -> None: ...
    def warning(self, *_: object) -> None: ...
    def error(self, *_: object) -> None: ...


def configure(
    identity: Identity,
    *,
    is_client: bool,
    idle_timeout_ms: int,
    max_datagram_bytes: int,
    max_stream_data_bytes: int,
) -> QuicConfiguration:
    """aioquic's configuration for one end. Certificates are checked by `Trust`, not by it.

    Raises `IdentityError` when the certificate or the key cannot be used.
    """
    configuration = QuicConfiguration(
        alpn_protocols=[ALPN],
        is_client=is_client,
        congestion_control_algorithm=congestion.NAME,
        idle_timeout=idle_timeout_ms / 1000,
        max_data=2**40,  # streams are bounded one by one, so that a slow one stops no other
        max_stream_data=max_stream_data_bytes,
        max_datagram_size=max_datagram_bytes,
        max_datagram_frame_size=MAX_FRAME_BYTES,
        cipher_suites=[
            tls.CipherSuite.AES_128_GCM_SHA256,
            tls.CipherSuite.CHACHA20_POLY1305_SHA256,
        ],
        supported_versions=[QuicProtocolVersion.VERSION_1],
        verify_mode=0,  # ssl.CERT_NONE: see Trust
    )
    try:
        leaf, *chain = x509.load_pem_x509_certificates(identity.certificate_pem)
        configuration.private_key = load_pem_private_key(identity.key_pem, password=None)
    except (ValueError, TypeError) as error:
        raise IdentityError(f"the identity of {identity.principal} is unusable: {error}") from error
    configuration.certificate = leaf
    configuration.certificate_chain = chain
    return configuration


class OverlayConnection(Transport):
    """One end of a connection. `peer` is set once the peer's certificate was accepted."""

    def __init__(
        self, *, configuration: QuicConfiguration, trust: Trust, max_streams: int, **rest: Any
    ) -> None:
        super().__init__(configuration=configuration, **rest)
        self._logger = cast(Any, _Silence())
        self._trust = trust
        self.peer: Principal | None = None
        self.expires_s: float | None = None  # when the first certificate of both runs out
        self.refusal: Refusal | None = None
        for limit, value in (
            (self._local_max_streams_bidi, max_streams),
            (self._local_max_streams_uni, 0),
        ):
            limit.value = limit.sent = value

    @property
    def confirmed(self) -> bool:
        """Both ends have accepted each other: the server said HANDSHAKE_DONE."""
        return bool(self._handshake_confirmed) and self.peer is not None

    @property
    def heard(self) -> bool:
        """Whether any packet of the peer's could be decrypted."""
        return any(space.largest_received_packet >= 0 for space in self._spaces.values())

    @property
    def rtt_s(self) -> float | None:
        """Smoothed round-trip time (RFC 9002, section 5.3)."""
        return float(self._loss._rtt_smoothed) if self._loss._rtt_initialized else None

    @property
    def latest_rtt_s(self) -> float | None:
        """The last sample of the round-trip time (RFC 9002, section 5.1)."""
        return float(self._loss._rtt_latest) if self._loss._rtt_initialized else None

    @property
    def takes_datagrams(self) -> bool:
        """Whether the peer announced that ours are welcome (RFC 9221, section 3)."""
        return (self._remote_max_datagram_frame_size or 0) >= MAX_FRAME_BYTES

    def seen(self) -> Seen:
        """What is known of the path from traffic alone."""
        space, loss = self._spaces[_ONE_RTT], self._loss
        newest = islice(reversed(space.sent_packets.values()), _LOOK_BACK)
        asked = next((packet for packet in newest if packet.is_ack_eliciting), None)
        control = cast(congestion.TolerantCongestionControl, loss._cc)
        return Seen(
            heard_s=space.largest_received_time or 0.0,
            asked=-1 if asked is None else asked.packet_number,
            asked_s=0.0 if asked is None else asked.sent_time or 0.0,
            acked=space.largest_acked_packet,
            delivered=control.packets_acked,
            lost=control.packets_lost,
            received=self.packets_in,
            expected=space.largest_received_packet,
            rtt_s=self.latest_rtt_s,
        )

    def _handle_connection_close_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        """The peer ended it: say so now. aioquic says so once it has drained (RFC 9000, section
        10.2.2), three retransmission timeouts later, while requests could go on elsewhere."""
        known = self._close_event
        super()._handle_connection_close_frame(context, frame_type, buf)
        if known is None and self._close_event is not None:
            self._events.append(self._close_event)

    # Mutual authentication

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.tls._request_client_certificate = not self._is_client

    def _update_traffic_key(
        self,
        direction: tls.Direction,
        epoch: tls.Epoch,
        cipher_suite: tls.CipherSuite,
        secret: bytes,
    ) -> None:
        # The key that decrypts the peer's 1-RTT packets is installed right after its Finished
        # was verified. Refusing here ends the handshake with a TLS alert; no stream data of
        # a peer that is not one of us can be decrypted, since the key never exists.
        if direction is tls.Direction.DECRYPT and epoch is tls.Epoch.ONE_RTT:
            try:
                self.peer = self._trust.check(
                    self.tls._peer_certificate, self.tls._peer_certificate_chain
                )
            except Refusal as refusal:
                self.refusal = refusal
                raise _alert(refusal) from refusal
            self.expires_s = self._expiry()
        super()._update_traffic_key(direction, epoch, cipher_suite, secret)

    def _expiry(self) -> float:
        """When the peer's certificate, or ours, or one between it and the CA, runs out (Unix time).
        A connection does not outlive them."""
        configuration = self._configuration
        certificates = [
            self.tls._peer_certificate,
            *self.tls._peer_certificate_chain,
            configuration.certificate,
            *configuration.certificate_chain,
        ]
        return min(float(c.not_valid_after_utc.timestamp()) for c in certificates if c is not None)


class _CertificateRequired(tls.Alert):
    description = tls.AlertDescription.certificate_required


class _AccessDenied(tls.Alert):
    description = tls.AlertDescription.access_denied


def _alert(refusal: Refusal) -> tls.Alert:
    kinds: dict[str, type[tls.Alert]] = {
        "no_certificate": _CertificateRequired,
        "untrusted": tls.AlertBadCertificate,
        "expired": tls.AlertCertificateExpired,
        "wrong_role": _AccessDenied,
        "wrong_name": _AccessDenied,
    }
    return kinds[refusal.reason](refusal.message)
