"""The one place that turns errors into HTTP: status, OpenAI's error object, headers."""

from __future__ import annotations

import asyncio
from math import ceil

from edge_node.admission.quota import OverLimit
from edge_node.errors import (
    AttemptsExhausted,
    BodyTooLarge,
    ConfigurationStale,
    InvalidHeader,
    InvalidKey,
    NotReady,
    Overloaded,
    Refused,
    RegionSilent,
    RegionStalled,
)
from edge_node.inflight import Cause
from runtime.errors import TradewindError
from topology.overlay.errors import OverlayProtocolError, RegionFailure
from topology.wire.chat import ChatError

RETRY_AFTER_S = 1
# The client's connection still carries, or may carry, a body that nobody will read.
UNREAD = frozenset((401, 408, 413))

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


def chat_error(error: TradewindError) -> ChatError:
    """What the client is told about `error`."""
    match error:
        case ChatError():
            return error
        case BodyTooLarge():
            return ChatError(413, error.message, code="request_too_large")
        case InvalidKey():
            return ChatError(401, error.message, code="invalid_api_key")
        case InvalidHeader():
            return ChatError(400, error.message, code="invalid_header", param=error.name)
        case Refused():
            return _refusal(error)
        case AttemptsExhausted():
            return _exhausted(error)
        case OverLimit():
            return RateLimited(error)
        case Overloaded():
            return ChatError(
                503,
                error.message,
                type="server_error",
                code="overloaded",
                retryable=True,
                retry_after_ms=ceil(error.retry_s * 1000),
            )
        case ConfigurationStale():
            return _server(503, "configuration_stale", f"This edge is out of date: {error.message}")
        case NotReady():
            return _server(503, "not_ready", error.message)
        case _:
            return _server(500, "internal_error", "The edge failed to serve this request.")


def stopped(cause: Cause | None) -> ChatError:
    """What the client is told when its request was stopped because of `cause`."""
    match cause:
        case Cause.SLOW_BODY:
            return ChatError(408, "The request body did not arrive in time.", code="slow_request")
        case Cause.DEADLINE | Cause.SILENCE:
            return _server(504, "deadline_exceeded", "The deadline passed before the answer.")
        case _:
            return _server(503, "shutting_down", "This edge is shutting down; try again.")


def told(error: BaseException, cause: Cause | None) -> ChatError:
    """What those are told who share the answer that ended so."""
    if isinstance(error, TradewindError):
        return chat_error(error)
    if isinstance(error, asyncio.CancelledError):
        return stopped(cause)
    return _server(500, "internal_error", "The edge failed to serve this request.")


def unknown_url(method: str, path: str) -> ChatError:
    shown = path if len(path) <= 128 else path[:127] + "…"
    return ChatError(404, f"Unknown request URL: {method} {shown}.", code="unknown_url")


class MethodNotAllowed(ChatError):
    """The path exists, the method does not; `allow` lists the methods that do."""

    def __init__(self, method: str, path: str, allow: str) -> None:
        super().__init__(
            405, f"Not allowed to {method[:16]} {path}; use {allow}.", code="method_not_allowed"
        )
        self.allow = allow


class RateLimited(ChatError):
    """The tenant is over its limit."""

    def __init__(self, error: OverLimit) -> None:
        super().__init__(
            429,
            error.message,
            type=_TYPES[429],
            code="rate_limit_exceeded",
            retryable=True,
            retry_after_ms=ceil(error.retry_s * 1000),
        )


def unknown_model(model: str) -> ChatError:
    shown = model if len(model) <= 128 else model[:127] + "…"
    return ChatError(
        404, f"The model '{shown}' does not exist.", code="model_not_found", param="model"
    )


def headers(error: ChatError, http1: bool) -> list[tuple[str, str]]:
    """Headers that an error reply needs besides the usual ones."""
    out = []
    if error.retry_after_ms is not None:
        out.append(("retry-after", str(max(1, ceil(error.retry_after_ms / 1000)))))
        # OpenAI's own clients prefer it: it can be told apart below a second.
        out.append(("retry-after-ms", str(error.retry_after_ms)))
    elif error.status in (429, 503):
        out.append(("retry-after", str(RETRY_AFTER_S)))
    if error.status == 401:
        out.append(("www-authenticate", "Bearer"))
    if http1 and error.status in UNREAD:
        out.append(("connection", "close"))
    if isinstance(error, MethodNotAllowed):
        out.append(("allow", error.allow))
    return out


def _refusal(error: Refused) -> ChatError:
    match error.decision.refusal:
        case "unknown_model":
            return unknown_model(error.model)
        case "model_not_allowed":
            return ChatError(
                403,
                f"Your account may not use the model '{error.model}'.",
                type="permission_error",
                code="model_not_allowed",
                param="model",
            )
        case "residency":
            reasons = "; ".join(f"{e.region}: {e.why}" for e in error.decision.excluded)
            return ChatError(
                403,
                f"No region may serve this request under your account's residency ({reasons}).",
                type="permission_error",
                code="residency_not_satisfiable",
            )
        case "no_route":
            return _server(503, "no_route", f"No route serves '{error.model}' for your account.")
        case _:
            reasons = "; ".join(f"{e.region}: {e.why}" for e in error.decision.excluded)
            return _server(
                503, "no_region_available", f"No region can serve this request now ({reasons})."
            )


def _exhausted(error: AttemptsExhausted) -> ChatError:
    last, tried = error.last, ", ".join(error.tried)
    match last:
        case RegionFailure():
            failure = last.failure
            kind = _TYPES.get(failure.status)
            if kind is None:
                kind = "invalid_request_error" if failure.status < 500 else "server_error"
            return ChatError(
                failure.status,
                failure.message,
                type=kind,
                code=failure.reason or _CODES.get(failure.code, failure.code),
                param=failure.param,
                retryable=failure.retryable,
                retry_after_ms=failure.retry_after_ms,
            )
        case RegionSilent() | RegionStalled():
            return _server(504, "region_timeout", f"No answer in time (tried {tried}).")
        case OverlayProtocolError():
            return _server(502, "region_faulty", f"The answer made no sense (tried {tried}).")
        case _:
            return _server(503, "region_unreachable", f"The way to it was cut (tried {tried}).")


_CODES = {
    "unknown_model": "model_not_found",
    "deadline": "deadline_exceeded",
    "invalid": "invalid_request",
}


def _server(status: int, code: str, message: str) -> ChatError:
    return ChatError(status, message, type="server_error", code=code, retryable=True)
