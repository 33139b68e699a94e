"""What a failed etcd call means: try elsewhere, give up, or "it may have been applied".

etcd's texts are those of api/v3rpc/rpctypes/error.go. Where a text is not known, a write counts
as possibly applied: being wrong in that direction costs a read, in the other a lost update.
"""

from __future__ import annotations

import enum
import re

import grpc
import msgspec


class Kind(enum.Enum):
    """What can be done about it."""

    UNREACHED = "unreached"  # no connection: refused, no such name, TLS
    NO_ANSWER = "no answer"  # connected, and then the time ran out or the connection broke
    NOT_SERVING = "not serving"  # the member answers, but cannot serve now; another may
    STRANGER = "stranger"  # something else listens there, or a member of another cluster
    TOKEN = "token"  # noqa: S105 - our token is unknown or old: authenticate again
    REFUSED = "refused"  # every member would refuse
    LEASE = "lease"  # it has ended, or never was
    COMPACTED = "compacted"  # the revision asked for is gone
    TOO_LARGE = "too large"  # the answer is larger than we accept
    CLOSED = "closed"  # this process closed the store


class Failure(msgspec.Struct, frozen=True):
    """Why a call to one member failed. `undone`: a write certainly had no effect."""

    kind: Kind
    detail: str
    undone: bool


class MemberFailed(Exception):
    """A call to one member failed; never leaves the store."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


def failed(kind: Kind, detail: str, *, undone: bool = True) -> MemberFailed:
    return MemberFailed(Failure(kind, detail, undone))


_CODE = grpc.StatusCode

# (code or None for any, beginning of the text) -> kind, all of them answers that come before
# anything is applied.
_UNDONE: tuple[tuple[grpc.StatusCode | None, str, Kind], ...] = (
    (_CODE.UNAVAILABLE, "failed to connect to all addresses", Kind.UNREACHED),
    (_CODE.UNAVAILABLE, "DNS resolution failed", Kind.UNREACHED),
    (_CODE.UNAVAILABLE, "errors resolving", Kind.UNREACHED),
    (_CODE.UNAVAILABLE, "etcdserver: no leader", Kind.NOT_SERVING),
    (_CODE.UNAVAILABLE, "etcdserver: not leader", Kind.NOT_SERVING),
    (_CODE.RESOURCE_EXHAUSTED, "etcdserver: too many requests", Kind.NOT_SERVING),
    (_CODE.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", Kind.REFUSED),
    (_CODE.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", Kind.COMPACTED),
    (_CODE.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future", Kind.NOT_SERVING),
    (_CODE.NOT_FOUND, "etcdserver: requested lease not found", Kind.LEASE),
    (_CODE.UNAUTHENTICATED, "", Kind.TOKEN),
    (_CODE.INVALID_ARGUMENT, "etcdserver: user name is empty", Kind.TOKEN),
    (_CODE.INVALID_ARGUMENT, "etcdserver: revision of auth store is old", Kind.TOKEN),
    (_CODE.INVALID_ARGUMENT, "", Kind.REFUSED),
    (_CODE.FAILED_PRECONDITION, "", Kind.REFUSED),
    (_CODE.PERMISSION_DENIED, "", Kind.REFUSED),
    (_CODE.DATA_LOSS, "etcdserver: corrupt cluster", Kind.REFUSED),
    (_CODE.UNIMPLEMENTED, "", Kind.STRANGER),
    (_CODE.UNKNOWN, "raft proposal dropped", Kind.NOT_SERVING),
    (_CODE.UNKNOWN, "raft: proposal dropped", Kind.NOT_SERVING),
)
_HTTP = re.compile(r"[Rr]eceived http2 header with status: \d+")


def failure_of(code: grpc.StatusCode, text: str) -> Failure:
    """Classify an error of gRPC or etcd."""
    detail = _readable(text) or code.name
    for only, beginning, kind in _UNDONE:
        if code is only and text.startswith(beginning):
            return Failure(kind, detail, undone=True)
    if code is _CODE.RESOURCE_EXHAUSTED and "larger than max" in text:
        return Failure(Kind.TOO_LARGE, detail, undone=False)
    if _HTTP.search(text):
        return Failure(Kind.STRANGER, f"not etcd: {detail}", undone=False)
    if text.startswith("etcdserver: "):
        return Failure(Kind.NOT_SERVING, detail, undone=False)
    return Failure(Kind.NO_ANSWER, detail, undone=False)


def _readable(text: str) -> str:
    """gRPC's text without its repetitions: the last error is the one that tells something."""
    text = text.rpartition("last error: ")[2] or text
    text = re.sub(r"^(UNKNOWN|UNAVAILABLE|INTERNAL): ", "", " ".join(text.split()))
    text = re.sub(r"^ipv[46]:\S+: ", "", text)
    return text if len(text) <= 300 else text[:299] + "…"
