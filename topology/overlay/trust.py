"""Who may speak to us: a peer's certificate is checked against the mesh CA and for its role.

Host names play no part. aioquic's own check runs on clients alone and wants a name, so both
ends turn it off and call `Trust.check` inside the handshake instead (see connection.py).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, TypeAlias

from aioquic import tls
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from runtime.identity import IdentityError, Principal, principal_of
from topology.overlay.errors import PeerRefused

Reason: TypeAlias = Literal["no_certificate", "untrusted", "expired", "wrong_role", "wrong_name"]


class Refusal(PeerRefused):
    """A refusal and the reason that it is counted under."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


class Trust:
    """The mesh CA's certificates (PEM, one or several), the roles that a peer may have, and the
    region whose core it must be: a wrong address must not carry data out of its residency."""

    def __init__(self, ca_pem: bytes, roles: Collection[str], region: str = "") -> None:
        try:
            authorities = x509.load_pem_x509_certificates(ca_pem)
        except ValueError as error:
            raise IdentityError("the CA file holds no PEM certificate") from error
        self._ca_pem = b"".join(ca.public_bytes(Encoding.PEM) for ca in authorities)
        self._roles = frozenset(roles)
        self._region = region

    def check(
        self, certificate: x509.Certificate | None, chain: list[x509.Certificate]
    ) -> Principal:
        """Whom the certificate speaks for, or `Refusal`. The peer has proved to own its key."""
        if certificate is None:
            raise Refusal("no_certificate", "the peer showed no certificate")
        try:
            tls.verify_certificate(certificate, chain, server_name=None, cadata=self._ca_pem)
        except tls.AlertCertificateExpired as error:
            raise Refusal("expired", str(error)) from error
        except (tls.Alert, ValueError) as error:
            raise Refusal("untrusted", f"not of this mesh: {error}") from error
        try:
            principal = principal_of(certificate)
        except (IdentityError, ValueError) as error:
            raise Refusal("wrong_role", str(error)) from error
        if principal.role not in self._roles:
            wanted = ", ".join(sorted(self._roles))
            raise Refusal("wrong_role", f"{principal} has not one of the roles: {wanted}")
        if self._region and not speaks_for(principal, self._region):
            raise Refusal("wrong_name", f"{principal} is no core of {self._region}")
        return principal


def speaks_for(principal: Principal, region: str) -> bool:
    """Whether a core's certificate is one of the region's: named `<region>`, or `<region>.<core>`
    where a region has several."""
    return principal.name == region or principal.name.startswith(region + ".")
