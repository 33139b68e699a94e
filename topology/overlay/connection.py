"""aioquic's connection with what the overlay needs: mutual authentication, limits, speed.

What is overridden, and why a subclass: docs/decisions/0003-overlay-on-aioquic.md. The test
tests/overlay/test_aioquic.py fails when the methods that we lean on change.
"""

from __future__ import annotations

from typing import Any, cast

from aioquic import tls
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicProtocolVersion
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from runtime.identity import Identity, IdentityError, Principal
from topology.overlay import congestion
from topology.overlay.transport import Transport
from topology.overlay.trust import Refusal, Trust

ALPN = "tradewind/1"


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
        super()._update_traffic_key(direction, epoch, cipher_suite, secret)


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
