"""Errors of membership, grouped by cause."""

from __future__ import annotations

import grpc

from runtime.errors import TradewindError


class RegistryUnavailable(TradewindError):
    """The registry gave no usable answer. Members stay what they were; try again."""

    retryable = True


class MemberLost(TradewindError):
    """The registry knows nothing of this member any more: it has to be registered anew."""

    retryable = True


class CannotOpenRegistry(TradewindError):
    """The registry cannot be used as it is set up."""


class HeartbeatsRefused(TradewindError):
    """The base: a stream of heartbeats that is not, or no longer, served."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class InvalidHeartbeat(HeartbeatsRefused):
    """A heartbeat that no node of ours sends. `problems` lists every mistake."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        self.problems = problems
        super().__init__("a heartbeat that cannot be: " + "; ".join(problems))


class NotAllowed(HeartbeatsRefused):
    """The certificate's role has no heartbeats, or speaks for another node."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Replaced(HeartbeatsRefused):
    """The same node opened another stream, which is the one that counts."""

    code = grpc.StatusCode.ABORTED


class TooMany(HeartbeatsRefused):
    """No room for another node, too many at once, or a node that cannot keep still."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    retryable = True


class Silent(HeartbeatsRefused):
    """The node sent nothing, or took no answer, for too long."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    retryable = True


class Closing(HeartbeatsRefused):
    """This replica is shutting down."""

    code = grpc.StatusCode.UNAVAILABLE
    retryable = True
