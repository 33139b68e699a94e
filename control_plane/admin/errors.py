"""The one place that maps errors to gRPC statuses with details, and back.

A status travels as gRPC's own code and message, and with `ErrorDetail` inside `google.rpc.Status`
in the trailing metadata `grpc-status-details-bin`, as gRPC's error model has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from control_plane.changes.errors import (
    ChangeConflict,
    ChangeRefused,
    HistoryDamaged,
    Refusal,
    UnknownResource,
    UnknownRevision,
)
from control_plane.store.base import StoreStatus
from control_plane.store.errors import Conflict, InvalidRequest, StoreUnavailable
from runtime.errors import TradewindError
from runtime.identity import IdentityError
from runtime.validation import InvalidDocument, Problem
from topology.errors import UnknownName
from topology.resources import Key
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb

DETAILS_KEY = "grpc-status-details-bin"
# Trailing metadata is bounded (channel.MAX_METADATA_BYTES), and base64 makes it a third larger.
_DETAIL_BYTES = 24 * 1024
_MESSAGE_CHARACTERS = 1_000
_CONFLICTS = 100  # a name has 128 characters at most
_LOGGED = 10  # mistakes

INVALID = "invalid"
CONFLICT = "conflict"
REFUSED = "refused"
UNAVAILABLE = "unavailable"
DENIED = "denied"
NOT_FOUND = "not_found"
DEADLINE = "deadline"
DAMAGED = "damaged"
UNSUPPORTED = "unsupported"
INTERNAL = "internal"


class Denied(TradewindError):
    """The caller's certificate does not allow the call."""


class NotServed(TradewindError):
    """This replica has no part that could answer the call."""


class AdminError(TradewindError):
    """An admin call failed, as the caller sees it. `code` is one of this module's codes."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        hint: str = "",
        problems: Sequence[Problem] = (),
        refusals: Sequence[Refusal] = (),
        conflicts: Sequence[Key] = (),
        since_s: float = 0.0,
        omitted: int = 0,
        ambiguous: bool = False,
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.problems = tuple(problems)
        self.refusals = tuple(refusals)
        self.conflicts = tuple(conflicts)
        self.since_s = since_s
        self.omitted = omitted
        self.ambiguous = ambiguous  # a change may or may not have been made
        self.retryable = code in (UNAVAILABLE, DEADLINE)


_CODES: tuple[tuple[type[Exception], str, grpc.StatusCode], ...] = (
    (InvalidDocument, INVALID, grpc.StatusCode.INVALID_ARGUMENT),
    (InvalidRequest, INVALID, grpc.StatusCode.INVALID_ARGUMENT),
    (ChangeConflict, CONFLICT, grpc.StatusCode.ABORTED),
    (Conflict, CONFLICT, grpc.StatusCode.ABORTED),
    (ChangeRefused, REFUSED, grpc.StatusCode.FAILED_PRECONDITION),
    (UnknownResource, NOT_FOUND, grpc.StatusCode.NOT_FOUND),
    (UnknownRevision, NOT_FOUND, grpc.StatusCode.NOT_FOUND),
    (UnknownName, NOT_FOUND, grpc.StatusCode.NOT_FOUND),
    (HistoryDamaged, DAMAGED, grpc.StatusCode.DATA_LOSS),
    (NotServed, UNSUPPORTED, grpc.StatusCode.UNIMPLEMENTED),
    (StoreUnavailable, UNAVAILABLE, grpc.StatusCode.UNAVAILABLE),
    (Denied, DENIED, grpc.StatusCode.PERMISSION_DENIED),
    (IdentityError, DENIED, grpc.StatusCode.PERMISSION_DENIED),
    (TimeoutError, DEADLINE, grpc.StatusCode.DEADLINE_EXCEEDED),
)


def to_status(error: Exception, store: StoreStatus) -> tuple[grpc.StatusCode, str, pb.ErrorDetail]:
    """The gRPC code, the message and the details for any error of a call."""
    code, status = next(
        ((code, status) for cls, code, status in _CODES if isinstance(error, cls)),
        (INTERNAL, grpc.StatusCode.INTERNAL),
    )
    message = error.message if isinstance(error, TradewindError) else _plain(error)
    hint = error.hint if isinstance(error, TradewindError) else ""
    detail = pb.ErrorDetail(code=code, hint=_short(hint))
    match error:
        case InvalidDocument():
            message = _headline(error.problems)
            _add_problems(detail, error.problems)
        case ChangeRefused():
            _add_refusals(detail, error.refusals)
        case ChangeConflict():
            detail.conflicts.extend(
                pb.Key(kind=k.kind, name=k.name) for k in error.keys[:_CONFLICTS]
            )
            detail.omitted = max(0, len(error.keys) - _CONFLICTS)
        case TimeoutError():
            detail.ambiguous = True
        case StoreUnavailable():
            detail.ambiguous = error.ambiguous
            detail.since_s = 0.0 if store.available else store.since_s
    return status, _short(message), detail


def for_log(error: Exception) -> str:
    """An error without the values that were found: what a stranger sends may be a secret."""
    if not isinstance(error, InvalidDocument):
        return str(error)
    places = [" ".join(filter(None, (p.source, p.path))) for p in error.problems[:_LOGGED]]
    more = len(error.problems) - len(places)
    return f"invalid: {'; '.join(map(_short, places))}" + (f"; {more} more" if more else "")


def trailing_metadata(
    code: grpc.StatusCode, message: str, detail: pb.ErrorDetail
) -> tuple[tuple[str, bytes], ...]:
    """What to send with the status so that `from_rpc_error` finds the details."""
    packed = any_pb2.Any()
    packed.Pack(detail)
    status = status_pb2.Status(code=code.value[0], message=message, details=[packed])
    return ((DETAILS_KEY, bytes(status.SerializeToString())),)


_BY_STATUS = {status: code for _, code, status in reversed(_CODES)} | {
    grpc.StatusCode.UNAUTHENTICATED: DENIED,
    grpc.StatusCode.CANCELLED: UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: INVALID,
}


def from_rpc_error(error: Any, endpoint: str) -> AdminError:
    """The error of a call as its caller should see it. `error` is a `grpc.RpcError` of a call."""
    detail = _detail(error)
    code = detail.code or _BY_STATUS.get(error.code(), INTERNAL)
    message = error.details() or error.code().name
    if not detail.code and code == UNAVAILABLE:
        message = f"no answer from {endpoint}: {message}"
    return AdminError(
        code,
        message,
        hint=detail.hint,
        problems=[Problem(p.source, p.path, p.found, p.allowed) for p in detail.problems],
        refusals=[Refusal(r.rule, r.message) for r in detail.refusals],
        conflicts=[Key(k.kind, k.name) for k in detail.conflicts],
        since_s=detail.since_s,
        omitted=detail.omitted,
        ambiguous=detail.ambiguous,
    )


def _detail(error: Any) -> pb.ErrorDetail:
    detail = pb.ErrorDetail()
    for key, value in error.trailing_metadata() or ():
        if key != DETAILS_KEY:
            continue
        try:
            for packed in status_pb2.Status.FromString(value).details:
                if packed.Unpack(detail):
                    break
        except DecodeError:
            continue
    return detail


def _add_problems(detail: pb.ErrorDetail, problems: Sequence[Problem]) -> None:
    """As many as fit; the rest are counted."""
    size = 0
    for index, problem in enumerate(problems):
        fields = [_short(text) for text in (problem.source, problem.path)]
        fields += [_short(text) for text in (problem.found, problem.allowed)]
        size += sum(len(text.encode()) for text in fields) + 16
        if size > _DETAIL_BYTES:
            detail.omitted = len(problems) - index
            return
        source, path, found, allowed = fields
        detail.problems.append(pb.Problem(source=source, path=path, found=found, allowed=allowed))


def _add_refusals(detail: pb.ErrorDetail, refusals: Sequence[Refusal]) -> None:
    """As many as fit; the rest are counted. The hint names the rules of all."""
    size = 0
    for index, refusal in enumerate(refusals):
        message = _short(refusal.message)
        size += len(message.encode()) + len(refusal.rule) + 16
        if size > _DETAIL_BYTES:
            detail.omitted = len(refusals) - index
            return
        detail.refusals.append(pb.Refusal(rule=refusal.rule, message=message))


def _headline(problems: Sequence[Problem]) -> str:
    """For callers that do not read the details: how many, and the first."""
    if len(problems) == 1:
        return str(problems[0])
    return f"{len(problems)} mistakes; the first: {problems[0]}"


def _plain(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "the call took too long"
    return f"a mistake in the control plane: {error!r}; its log says more"


def _short(text: str) -> str:
    return text if len(text) <= _MESSAGE_CHARACTERS else text[: _MESSAGE_CHARACTERS - 1] + "…"
