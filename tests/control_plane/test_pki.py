"""The mesh CA."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from control_plane.pki import AuthorityError, create_ca, issue
from runtime.clock import ManualClock
from runtime.identity import Identity, IdentityError, Principal

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def test_a_certificate_is_what_it_should_be(tmp_path: Path) -> None:
    clock = ManualClock(wall=NOW.timestamp())
    create_ca(tmp_path / "ca", clock=clock)
    hosts = ["192.0.2.1", "2001:db8::1", "edge.example", "localhost"]
    files = issue(tmp_path / "ca", Principal("edge", "tokyo"), tmp_path / "tokyo", hosts, 30, clock)
    identity = Identity.load(files)
    assert str(identity.principal) == "edge/tokyo"
    certificate = x509.load_pem_x509_certificate(identity.certificate_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [
        "tradewind.internal",
        "edge.tradewind.internal",
        "localhost",
        "edge.example",
    ]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == [
        "127.0.0.1",
        "192.0.2.1",
        "2001:db8::1",
    ]
    assert certificate.not_valid_after_utc == NOW + timedelta(days=30)
    assert files.key.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "ca" / "ca-key.pem").stat().st_mode & 0o777 == 0o600
    ca = x509.load_pem_x509_certificate(identity.ca_pem)
    verifier = (
        PolicyBuilder()
        .store(Store([ca]))
        .time(NOW)
        .build_server_verifier(x509.DNSName("edge.tradewind.internal"))
    )
    assert len(verifier.verify(certificate, [])) == 2


def test_no_certificate_outlives_its_ca(tmp_path: Path) -> None:
    create_ca(tmp_path / "ca", days=10)
    files = issue(tmp_path / "ca", Principal("dns", "ns1"), tmp_path / "ns1", days=365)
    ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    assert certificate.not_valid_after_utc == ca.not_valid_after_utc


def test_what_cannot_be_issued(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match="no CA"):
        issue(tmp_path / "ca", Principal("dns", "ns1"), tmp_path / "out")
    create_ca(tmp_path / "ca")
    with pytest.raises(AuthorityError, match="exists already"):
        create_ca(tmp_path / "ca")
    with pytest.raises(AuthorityError, match="no role"):
        issue(tmp_path / "ca", Principal("root", "x"), tmp_path / "out")
    for name in ("", "a/b"):
        with pytest.raises(IdentityError):
            issue(tmp_path / "ca", Principal("edge", name), tmp_path / "out")
    with pytest.raises(AuthorityError, match="ASCII"):
        issue(tmp_path / "ca", Principal("edge", "x"), tmp_path / "out", ["höst"])
    (tmp_path / "ca" / "ca-key.pem").write_text("nonsense")
    with pytest.raises(AuthorityError, match="cannot be read"):
        issue(tmp_path / "ca", Principal("edge", "x"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
