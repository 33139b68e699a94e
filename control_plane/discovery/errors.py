"""Errors of discovery: why a stream was ended, each with the gRPC status it ends with."""

from __future__ import annotations

import grpc

from runtime.errors import TradewindError


class StreamRefused(TradewindError):
    """The base: a stream that is not, or no longer, served."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class InvalidSubscription(StreamRefused):
    """A request that no client of ours sends."""


class NotAllowed(StreamRefused):
    """The certificate's role may not subscribe, or speaks for another node."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Replaced(StreamRefused):
    """The same node opened another stream, which is the one that counts."""

    code = grpc.StatusCode.ABORTED


class TooMany(StreamRefused):
    """No room for another node, or too many came at once."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    retryable = True


class NothingToServe(StreamRefused):
    """This replica has neither reached the store nor found a snapshot on its disk."""

    code = grpc.StatusCode.UNAVAILABLE
    retryable = True


class NoAnswer(StreamRefused):
    """The node did not acknowledge in time, or did not begin to speak."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    retryable = True
