"""Who may call what: every role against every call of the service, over real mutual TLS."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from control_plane.admin import access
from control_plane.admin.errors import AdminError, Denied, from_rpc_error
from control_plane.pki.authority import ROLES
from control_plane.store.memory import MemoryStore
from runtime.identity import Principal
from tests.control_plane.mesh import Background, Mesh, region, resource, world
from topology import resources as res
from topology.resources import Resource
from topology.wire.channel import client_credentials, client_options
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb
from topology.wire.gen.tradewind.v1 import admin_pb2_grpc, resource_pb2

CALLS = [m.name for m in pb.DESCRIPTOR.services_by_name["Admin"].methods]
PEOPLE = ("viewer", "operator", "admin")
FIRST, SECOND = 1, 2  # changes that the fixture makes, in place of their revisions
DUBAI = region("dubai", "AE")
TENANT = resource("Tenant", "fresh")


def put(resource_: Resource, **more: Any) -> pb.ApplyRequest:
    message = resource_pb2.Resource(
        kind=resource_.kind, name=resource_.name, json=res.encode(resource_)
    )
    return pb.ApplyRequest(puts=[message], **more)


def drain(**more: Any) -> pb.SetOverrideRequest:
    return pb.SetOverrideRequest(regions=["singapore"], action="drain", reason="x", **more)


# What each call is made with, and the least role that may: everyone above may too.
REQUESTS: dict[str, list[tuple[Any, str]]] = {
    "Apply": [
        (put(DUBAI, dry_run=True), "viewer"),
        (put(TENANT, dry_run=True, force=["many"]), "viewer"),
        (put(DUBAI), "operator"),
        (pb.ApplyRequest(removes=[pb.Key(kind="Zone", name="tradewind.test")]), "operator"),
        (put(DUBAI, force=["many"]), "admin"),
        (put(TENANT), "admin"),
        (put(resource("Policy", "default")), "admin"),
        (pb.ApplyRequest(removes=[pb.Key(kind="Tenant", name="globex")]), "admin"),
    ],
    "Get": [(pb.GetRequest(), "viewer")],
    "Status": [(pb.StatusRequest(), "viewer")],
    "Explain": [(pb.ExplainRequest(edge="tokyo", tenant="acme", model="smol"), "viewer")],
    "Paths": [(pb.PathsRequest(), "viewer")],
    "Ladder": [(pb.LadderRequest(), "viewer")],
    "SetOverride": [
        (drain(dry_run=True), "viewer"),
        (drain(), "operator"),
        (drain(force=["last-region"]), "admin"),
    ],
    "ClearOverride": [
        (pb.ClearOverrideRequest(regions=["singapore"], reason="x", dry_run=True), "viewer"),
        (pb.ClearOverrideRequest(regions=["singapore"], reason="x"), "operator"),
        (pb.ClearOverrideRequest(regions=["singapore"], reason="x", force=["many"]), "admin"),
    ],
    "History": [(pb.HistoryRequest(), "viewer")],
    "Rollback": [
        (pb.RollbackRequest(to_revision=FIRST, dry_run=True, reason="x"), "viewer"),
        (pb.RollbackRequest(to_revision=SECOND, reason="x"), "operator"),
        (pb.RollbackRequest(to_revision=SECOND, reason="x", force=["many"]), "admin"),
        (pb.RollbackRequest(to_revision=FIRST, reason="x"), "admin"),  # takes a tenant away
    ],
    "VerifyAudit": [(pb.VerifyAuditRequest(), "viewer")],
    "GetRollout": [(pb.GetRolloutRequest(), "viewer")],
    "ControlRollout": [(pb.ControlRolloutRequest(action="pause"), "operator")],
}


class Asking:
    """Calls with any identity, as raw gRPC."""

    def __init__(self, mesh: Mesh, background: Background) -> None:
        self._mesh = mesh
        self._endpoint = background.endpoint
        self._background = background

    def head(self) -> int:
        """The number of the last change."""
        archive = self._background.replica.changes.archive
        return self._background.call(archive.head()).number

    def _revision(self, number: int) -> int:
        archive = self._background.replica.changes.archive
        [kept], _ = self._background.call(archive.page(1, before=number + 1))
        return kept.revision

    def __call__(self, who: str, method: str, request: Any) -> AdminError | None:
        """None where all went well."""
        if method == "Rollback":
            revision = self._revision(request.to_revision)
            request = pb.RollbackRequest(
                to_revision=revision,
                reason=request.reason,
                dry_run=request.dry_run,
                force=request.force,
            )
        credentials = client_credentials(self._mesh.identity(who))
        with grpc.secure_channel(self._endpoint, credentials, client_options()) as channel:
            try:
                getattr(admin_pb2_grpc.AdminStub(channel), method)(request, timeout=10)
            except grpc.RpcError as error:
                return from_rpc_error(error, self._endpoint)
        return None

    def denied(self, who: str, method: str, request: Any) -> AdminError | None:
        error = self(who, method, request)
        return error if error is not None and error.code == "denied" else None


@pytest.fixture
def background(mesh: Mesh) -> Iterator[Background]:
    with Background(mesh, MemoryStore()) as running:
        running.apply(*world())
        running.apply(resource("Tenant", "later"))
        running.apply(
            resource(
                "Override", "singapore", region="singapore", action="drain", reason="x", percent=5
            )
        )
        yield running


def test_every_call_has_a_rule_and_a_row_here() -> None:
    """A new rpc fails this until somebody has decided who may call it."""
    assert set(access.RULES) == set(CALLS)
    assert set(REQUESTS) == set(CALLS)
    assert set(access.ROLES) <= set(ROLES)


@pytest.mark.parametrize("method", CALLS)
def test_each_role_and_each_call(mesh: Mesh, background: Background, method: str) -> None:
    asking = Asking(mesh, background)
    for request, least in REQUESTS[method]:
        for role in ROLES:
            may = role in PEOPLE and PEOPLE.index(role) >= PEOPLE.index(least)
            if may and role != least and not getattr(request, "dry_run", True):
                continue  # made once is enough: the second time there is nothing to do
            head = asking.head()
            error = asking.denied(f"{role}/someone", method, request)
            assert (error is None) == may, (role, str(request), error)
            if error is not None:
                assert asking.head() == head
                assert f"{role}/someone may not" in error.message
                assert role in PEOPLE or "dry-run" not in error.message, "nor that"
                assert "tradewind pki issue" in error.hint
                assert least in error.hint or "admin" in error.hint


def test_admins_may_do_all_that_operators_may(mesh: Mesh, background: Background) -> None:
    asking = Asking(mesh, background)
    for method, rows in REQUESTS.items():
        for request, _ in rows:
            assert asking.denied("admin/alice", method, request) is None, method


@pytest.mark.parametrize("role", ["pilot", "Admin", "admin ", "root", "edge"])
def test_a_role_that_nobody_knows_may_nothing(role: str) -> None:
    for method in CALLS:
        for request, _ in REQUESTS[method]:
            with pytest.raises(Denied, match="may not call"):
                access.check_call(Principal(role, "x"), method, request)


def test_a_call_without_a_rule_is_nobodys() -> None:
    with pytest.raises(Denied, match="no rule says who may"):
        access.check_call(Principal("admin", "x"), "Destroy", pb.GetRequest())


def test_a_dry_run_says_that_the_change_is_somebody_elses(
    mesh: Mesh, background: Background
) -> None:
    credentials = client_credentials(mesh.identity("operator/bob"))
    with grpc.secure_channel(background.endpoint, credentials, client_options()) as channel:
        told = admin_pb2_grpc.AdminStub(channel).Apply(put(TENANT, dry_run=True), timeout=10)
    assert any("not yours to make" in warning for warning in told.warnings)


def test_an_operator_may_apply_a_file_whose_tenants_stay_as_they_are(
    mesh: Mesh, background: Background
) -> None:
    request = put(DUBAI)
    request.puts.extend(put(world()[6]).puts)
    assert Asking(mesh, background)("operator/bob", "Apply", request) is None


SECRET = "sk-tw-a-raw-key-that-nobody-may-see"
TENANT_JSON = '{"kind": "Tenant", "name": "acme", "spec": {"api_keys": %s}}'


@pytest.mark.parametrize(
    "keys",
    [
        f'["{SECRET}"]',
        f'"{SECRET}"',
        f'[["{SECRET}"]]',
        f'{{"{SECRET}": "{SECRET}"}}',
        f'["sha256:{SECRET}"]',
        f'[{{"key": "{SECRET}"}}]',
    ],
)
def test_a_raw_key_is_refused_and_told_on_nowhere(
    mesh: Mesh, background: Background, quiet_logs: io.StringIO, keys: str
) -> None:
    asking = Asking(mesh, background)
    head, logged = asking.head(), len(quiet_logs.getvalue())
    message = resource_pb2.Resource(kind="Tenant", name="acme", json=(TENANT_JSON % keys).encode())
    error = asking("admin/alice", "Apply", pb.ApplyRequest(puts=[message]))
    assert error is not None
    assert error.code == "invalid"
    assert "spec.api_keys" in error.message
    written = quiet_logs.getvalue()[logged:]
    assert "spec.api_keys" in written, "the refusal is logged, by its place"
    said = repr((error.message, error.hint, error.problems)) + written
    assert SECRET not in said
    assert asking.head() == head
