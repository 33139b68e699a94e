"""Make the mesh CA and certificates under it (EC P-256, X.509 v3, RFC 5280).

A certificate speaks for one principal: the URI `spiffe://tradewind/<role>/<name>`. Its DNS names
are `tradewind.internal`, `<role>.tradewind.internal` and `localhost`: clients of the control
plane insist on `control.tradewind.internal`, so that a stolen edge certificate cannot pose as a
control plane.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from control_plane.pki import bundle, ledger
from control_plane.pki.bundle import CA_CERTIFICATE, CA_KEY
from control_plane.pki.files import AuthorityError, write_all
from runtime.clock import Clock, SystemClock
from runtime.identity import IdentityFiles, Principal

ROLES = ("edge", "core", "control", "dns", "proxy", "viewer", "operator", "admin")
MESH_DOMAIN = "tradewind.internal"
CA_DAYS = 3650
_SKEW = timedelta(minutes=5)  # clocks of other machines may be behind ours


def create_ca(directory: Path, *, days: int = CA_DAYS, clock: Clock | None = None) -> None:
    """Make a CA in `directory` (`ca.pem`, `ca-key.pem`); refuses where there is one already."""
    for name in (CA_CERTIFICATE, CA_KEY):
        if (directory / name).exists():
            raise AuthorityError(
                f"{directory / name} exists already",
                hint="use another directory; a new CA would cut off everything the old one issued",
            )
    key = ec.generate_private_key(ec.SECP256R1())
    # Two CAs are there at once while one takes over from the other: each has its own name, since
    # some verifiers look an issuer up by name and take the first.
    serial = x509.random_serial_number()
    name = f"Tradewind mesh CA {serial:040x}"[:34]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    now = _now(clock)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(key_id, critical=False)
        .sign(key, hashes.SHA256())
    )
    write_all(
        (directory / CA_KEY, _key_pem(key), 0o600),
        (directory / CA_CERTIFICATE, _pem(certificate), 0o644),
    )


def issue(
    ca_directory: Path,
    principal: Principal,
    out_dir: Path,
    hosts: Sequence[str] = (),
    days: float = 365,
    clock: Clock | None = None,
    roots: Sequence[x509.Certificate] = (),
) -> IdentityFiles:
    """Issue a certificate for `principal` into `out_dir` and return where its files lie.

    `hosts` are further DNS names or IP addresses to be reached under; `127.0.0.1` is always
    there. Files of an earlier identity in `out_dir` are replaced. It trusts the CAs of
    `ca_directory`, and `roots` beside them.
    """
    if principal.role not in ROLES:
        raise AuthorityError(
            f"{principal.role!r} is no role", hint="roles: " + ", ".join(sorted(ROLES))
        )
    Principal.parse(principal.uri)  # a name that no certificate could carry is refused here
    ca, ca_key = load_ca(ca_directory)
    key = ec.generate_private_key(ec.SECP256R1())
    now = _now(clock)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(principal)[:64])]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(min(now + timedelta(days=days), ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .add_extension(_names(principal, hosts), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
            critical=False,
        )
        .sign(ca_key, hashes.SHA256())
    )
    files = identity_files(out_dir)
    roots = bundle.with_roots(roots, bundle.trusted(ca_directory))
    ledger.note(ca_directory, principal, certificate, out_dir)
    write_all(
        (files.key, _key_pem(key), 0o600),
        (files.certificate, _pem(certificate), 0o644),
        (files.ca, bundle.pem_of(roots), 0o644),
    )
    return files


def identity_files(directory: Path) -> IdentityFiles:
    """Where the files of an identity lie in a directory that `issue` wrote."""
    return IdentityFiles(
        certificate=directory / "certificate.pem",
        key=directory / "key.pem",
        ca=directory / "ca.pem",
    )


def load_ca(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate((directory / CA_CERTIFICATE).read_bytes())
        key = serialization.load_pem_private_key((directory / CA_KEY).read_bytes(), None)
    except OSError as error:
        raise AuthorityError(
            f"no CA in {directory}: {error.strerror}", hint="`tradewind pki init` makes one"
        ) from error
    except ValueError as error:
        raise AuthorityError(f"the CA in {directory} cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AuthorityError(f"the CA key in {directory} is not an elliptic-curve key")
    return certificate, key


def _names(principal: Principal, hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    dns = [MESH_DOMAIN, f"{principal.role}.{MESH_DOMAIN}", "localhost"]
    addresses = ["127.0.0.1"]
    for host in hosts:
        try:
            addresses.append(str(ipaddress.ip_address(host)))
        except ValueError:
            dns.append(host)
    try:
        names = [x509.DNSName(name) for name in dict.fromkeys(dns)]
    except ValueError as error:
        raise AuthorityError(f"a host name is not ASCII: {error}") from error
    return x509.SubjectAlternativeName(
        [
            x509.UniformResourceIdentifier(principal.uri),
            *names,
            *(x509.IPAddress(ipaddress.ip_address(a)) for a in dict.fromkeys(addresses)),
        ]
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _now(clock: Clock | None) -> datetime:
    return datetime.fromtimestamp((clock or SystemClock()).wall(), UTC)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
