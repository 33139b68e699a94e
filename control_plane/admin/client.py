"""A client of the admin API, for the command line and other tools. It blocks.

Endpoints are tried in order. A call that changes something goes to another replica only when it
is certain that the first one did not carry it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from control_plane.admin.errors import DETAILS_KEY, UNAVAILABLE, AdminError, from_rpc_error
from runtime.identity import Identity
from topology.wire.channel import Options, client_credentials, client_options
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb
from topology.wire.gen.tradewind.v1 import admin_pb2_grpc

CALL_TIMEOUT_S = 15.0
STATUS_TIMEOUT_S = 5.0  # it is told from memory
CONNECT_TIMEOUT_MS = 2_000

# How gRPC begins the details of a call that never left this machine.
_NEVER_SENT = ("failed to connect", "errors resolving", "DNS resolution failed")
# What is left of a handshake that failed at the other end (TLS 1.3 lets us send first).
_TLS_SIGNS = ("handshake", "CERTIFICATE", "Socket closed", "Connection reset")


class AdminClient:
    """Use as a context manager. Every call raises `AdminError`."""

    def __init__(self, endpoints: Sequence[str], identity: Identity) -> None:
        self.endpoints = tuple(endpoints)
        self._identity = identity
        self._channels: dict[str, grpc.Channel] = {}

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()

    def apply(self, request: pb.ApplyRequest) -> pb.ApplyResponse:
        response: pb.ApplyResponse = self._any("Apply", request, changes=not request.dry_run)
        return response

    def set_override(self, request: pb.SetOverrideRequest) -> pb.ApplyResponse:
        changes = not request.dry_run
        response: pb.ApplyResponse = self._any("SetOverride", request, changes=changes)
        return response

    def clear_override(self, request: pb.ClearOverrideRequest) -> pb.ApplyResponse:
        changes = not request.dry_run
        response: pb.ApplyResponse = self._any("ClearOverride", request, changes=changes)
        return response

    def rollback(self, request: pb.RollbackRequest) -> pb.ApplyResponse:
        response: pb.ApplyResponse = self._any("Rollback", request, changes=not request.dry_run)
        return response

    def history(self, request: pb.HistoryRequest) -> pb.HistoryResponse:
        response: pb.HistoryResponse = self._any("History", request)
        return response

    def verify_audit(self) -> pb.VerifyAuditResponse:
        response: pb.VerifyAuditResponse = self._any("VerifyAudit", pb.VerifyAuditRequest())
        return response

    def rollout(self) -> pb.Rollout:
        response: pb.Rollout = self._any("GetRollout", pb.GetRolloutRequest())
        return response

    def control_rollout(self, request: pb.ControlRolloutRequest) -> pb.Rollout:
        response: pb.Rollout = self._any("ControlRollout", request, changes=True)
        return response

    def get(
        self, kind: str = "", name: str = "", timeout_s: float = CALL_TIMEOUT_S
    ) -> pb.GetResponse:
        request = pb.GetRequest(kind=kind, name=name)
        response: pb.GetResponse = self._any("Get", request, timeout_s=timeout_s)
        return response

    def explain(self, request: pb.ExplainRequest) -> pb.ExplainResponse:
        """By a replica that hears what the edge sees, if there is one."""
        answers: list[pb.ExplainResponse] = []
        failed: list[AdminError] = []
        for endpoint in self.endpoints:
            try:
                answers.append(self._one(endpoint, "Explain", request, STATUS_TIMEOUT_S))
            except AdminError as error:
                error.ambiguous = False
                if not error.retryable:
                    raise
                failed.append(error)
                continue
            if answers[-1].heard:
                break
        if not answers:
            raise _worst(failed)
        return max(answers, key=lambda answer: (answer.heard, not answer.stale_since_s))

    def paths(self, request: pb.PathsRequest) -> tuple[pb.PathsResponse, list[AdminError]]:
        """The ways of all edges as whoever hears them tells, and why replicas told nothing. Each
        node is told once, by the newest heartbeat. Raises `AdminError` where none answers."""
        told = self._each("Paths", request)
        errors = [answer for answer in told if isinstance(answer, AdminError)]
        answers = [answer for answer in told if not isinstance(answer, AdminError)]
        if not answers:
            raise next((error for error in errors if not error.retryable), None) or _worst(errors)
        nodes: dict[str, pb.EdgePaths] = {}
        for answer in answers:
            for node in answer.edges:
                if node.node not in nodes or nodes[node.node].heard_s < node.heard_s:
                    nodes[node.node] = node
        names = {node.split("/")[1] for node in nodes}
        unheard = {edge for answer in answers for edge in answer.unheard} - names
        merged = pb.PathsResponse(
            edges=[nodes[name] for name in sorted(nodes)],
            unheard=sorted(unheard),
            now_s=max(answer.now_s for answer in answers),
            omitted=sum(answer.omitted for answer in answers),
        )
        return merged, errors

    def ladder(self, request: pb.LadderRequest) -> tuple[pb.LadderResponse, list[AdminError]]:
        """Where all edges stand, as `paths` for their ways."""
        told = self._each("Ladder", request)
        errors = [answer for answer in told if isinstance(answer, AdminError)]
        answers = [answer for answer in told if not isinstance(answer, AdminError)]
        if not answers:
            raise next((error for error in errors if not error.retryable), None) or _worst(errors)
        nodes: dict[str, pb.EdgeStanding] = {}
        for answer in answers:
            for node in answer.edges:
                if node.node not in nodes or nodes[node.node].heard_s < node.heard_s:
                    nodes[node.node] = node
        names = {node.split("/")[1] for node in nodes}
        merged = pb.LadderResponse(
            edges=[nodes[name] for name in sorted(nodes)],
            unheard=sorted({edge for answer in answers for edge in answer.unheard} - names),
            now_s=max(answer.now_s for answer in answers),
            omitted=sum(answer.omitted for answer in answers),
        )
        return merged, errors

    def statuses(self) -> list[tuple[str, pb.StatusResponse | AdminError]]:
        """What each replica says of itself and its nodes, or why it says nothing; asked at once,
        so that those which are down cost the time of one."""
        endpoints = list(dict.fromkeys(self.endpoints))
        return list(zip(endpoints, self._each("Status", pb.StatusRequest()), strict=True))

    def _each(self, method: str, request: Any) -> list[Any]:
        """The answer of each replica, or its error."""

        def ask(endpoint: str) -> Any:
            try:
                return self._one(endpoint, method, request, STATUS_TIMEOUT_S)
            except AdminError as error:
                return error

        endpoints = list(dict.fromkeys(self.endpoints))
        for endpoint in endpoints:
            self._stub(endpoint)  # a channel is opened here, and not by several at once
        with ThreadPoolExecutor(max_workers=max(1, len(endpoints))) as pool:
            return list(pool.map(ask, endpoints))

    def _any(
        self,
        method: str,
        request: Any,
        *,
        changes: bool = False,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Any:
        """The answer of the first replica that can give one."""
        failed: list[AdminError] = []
        for endpoint in self.endpoints:
            try:
                return self._one(endpoint, method, request, timeout_s)
            except AdminError as error:
                error.ambiguous &= changes
                if not error.retryable or error.ambiguous:
                    raise
                failed.append(error)
        raise _worst(failed)

    def _one(
        self, endpoint: str, method: str, request: Any, timeout_s: float = CALL_TIMEOUT_S
    ) -> Any:
        try:
            return getattr(self._stub(endpoint), method)(request, timeout=timeout_s)
        except grpc.RpcError as error:
            told = from_rpc_error(error, endpoint)
            if not _from_replica(error):
                told.ambiguous = not _never_sent(error)
                told.hint = _hint(error)
            raise told from error

    def _stub(self, endpoint: str) -> Any:
        channel = self._channels.get(endpoint)
        if channel is None:
            # The least that gRPC gives an attempt to connect is what it waits between two.
            options: Options = [
                *client_options(),
                ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
            ]
            credentials = client_credentials(self._identity)
            channel = grpc.secure_channel(endpoint, credentials, options)
            self._channels[endpoint] = channel
        return admin_pb2_grpc.AdminStub(channel)  # type: ignore[no-untyped-call]


def _worst(failed: list[AdminError]) -> AdminError:
    """One error for several replicas: what one says of the store, else why none answers."""
    spoke = next((error for error in failed if error.since_s), None)
    if spoke is not None or len(failed) == 1:
        return spoke or failed[0]
    lines = "\n".join(f"  {error.message}" for error in failed)
    return AdminError(UNAVAILABLE, f"no replica answers:\n{lines}", hint=failed[-1].hint)


def _never_sent(error: Any) -> bool:
    return (error.details() or "").startswith(_NEVER_SENT)


def _from_replica(error: Any) -> bool:
    """Whether a replica itself gave this status, rather than gRPC on our side."""
    return any(key == DETAILS_KEY for key, _ in error.trailing_metadata() or ())


def _hint(error: Any) -> str:
    details = error.details() or ""
    if any(sign in details for sign in _TLS_SIGNS):
        return "the identity and the control plane must be issued by the same CA: `--identity DIR`"
    return "is a control-plane replica running there? `--endpoint` names others"
