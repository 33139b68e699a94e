"""API keys to tenants."""

from __future__ import annotations

import pytest

from edge_node.errors import InvalidKey
from edge_node.front.auth import MAX_REMEMBERED, Keyring
from tests.edge_node.worlds import ACME, EUROBANK, snapshot, tenant


@pytest.fixture
def keyring() -> Keyring:
    keyring = Keyring()
    keyring.use(snapshot())
    return keyring


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_key_names_its_tenant(keyring: Keyring, scheme: str) -> None:
    assert keyring.tenant(f"{scheme} {ACME}") == "acme"
    assert keyring.tenant(f"{scheme} {ACME}") == "acme"
    assert keyring.tenant(f"{scheme} {EUROBANK}") == "eurobank"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        ACME,
        f"Basic {ACME}",
        f"Bearer {ACME}x",
        f"Bearer {ACME} {ACME}",
        "Bearer " + "k" * 100_000,
    ],
)
def test_anything_else_is_refused_and_not_remembered(keyring: Keyring, header: str | None) -> None:
    with pytest.raises(InvalidKey):
        keyring.tenant(header)
    assert not keyring._known


def test_a_revoked_key_stops_at_once(keyring: Keyring) -> None:
    assert keyring.tenant(f"Bearer {ACME}") == "acme"
    keyring.use(snapshot(tenant("acme", "sk-new-0123456789")))
    with pytest.raises(InvalidKey):
        keyring.tenant(f"Bearer {ACME}")
    assert keyring.tenant("Bearer sk-new-0123456789") == "acme"


def test_what_is_remembered_is_bounded(keyring: Keyring) -> None:
    for spaces in range(1, 400):
        keyring.tenant("Bearer" + " " * spaces + ACME)
    assert len(keyring._known) <= MAX_REMEMBERED
