"""However much there is to say, an error arrives: gRPC drops a status that is too long."""

from __future__ import annotations

import pytest

from control_plane.admin.errors import from_rpc_error, to_status, trailing_metadata
from control_plane.changes.errors import RULES, ChangeConflict, ChangeRefused, Refusal
from control_plane.store.base import StoreStatus
from runtime.errors import TradewindError
from runtime.validation import InvalidDocument, Problem
from topology.errors import UnknownName
from topology.resources import Key
from topology.wire.channel import MAX_METADATA_BYTES

UP = StoreStatus(available=True, since_s=0.0, detail="")
LONG = "x" * 900


class Failed:
    """A `grpc.RpcError` as a caller gets it."""

    def __init__(self, error: Exception) -> None:
        self.status, self.message, detail = to_status(error, UP)
        self.metadata = trailing_metadata(self.status, self.message, detail)

    def code(self) -> object:
        return self.status

    def details(self) -> str:
        return self.message

    def trailing_metadata(self) -> object:
        return self.metadata


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (InvalidDocument([Problem(LONG, "spec", "a", "b")] * 500), "problems"),
        (ChangeRefused(tuple(Refusal(rule, LONG) for rule in RULES * 200)), "refusals"),
        (ChangeConflict(tuple(Key("Tenant", f"{n:0120d}") for n in range(5000)), ()), "conflicts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_counted(error: TradewindError, told: str) -> None:
    failed = Failed(error)
    size = sum(len(value) for _, value in failed.metadata) * 4 // 3 + len(failed.message)
    assert size < MAX_METADATA_BYTES
    found = from_rpc_error(failed, "cp-1:7400")
    kept = len(getattr(found, told))
    asked = getattr(error, "keys", None) or getattr(error, told)
    assert kept > 10
    assert kept + found.omitted == len(asked)


def test_the_hint_names_every_rule_that_refuses() -> None:
    error = ChangeRefused(tuple(Refusal(rule, LONG) for rule in RULES * 200))
    for rule in RULES:
        assert f"--force-{rule}" in from_rpc_error(Failed(error), "cp-1:7400").hint


def test_a_hint_is_no_list_of_everything() -> None:
    error = UnknownName("no Tenant 'x'", hint=LONG * 100)
    assert len(from_rpc_error(Failed(error), "cp-1:7400").hint) <= 1_000
