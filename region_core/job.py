"""A request as the core takes it, and how it is told what becomes of it."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from region_core.engine.base import FinishReason
from region_core.errors import Refused
from region_core.scheduling.admission import Refusal
from topology.overlay.frames import ErrorCode
from topology.wire.chat import ChatRequest


class Job(Struct, frozen=True, kw_only=True):
    """A checked request. `deadline_s` is on the core's monotonic clock.

    `resume` holds the tokens of the answer that the client already has: the answer goes on
    behind them, as if it had never been interrupted. With no seed in the request, one is made
    from `request_id`, so a retry under the same id draws the same tokens. `weight` is the tenant's,
    and `cursor` its place when not all are admitted (`topology.cursor`).
    """

    request: ChatRequest
    request_id: str
    deadline_s: float
    tenant: str = ""
    urgency: int = 3  # RFC 9218: 0 is the most urgent, 7 the least
    resume: tuple[int, ...] = ()
    weight: float = 1.0
    cursor: int = 0
    reuse: bool = True  # an answer that is there already will do, and this one may be kept


class Failed(Struct, frozen=True):
    """Why there is no answer, or no more of it.

    `code` is the overlay's, `status` the HTTP status that fits, `param` the field at fault,
    and `reason` OpenAI's `error.code` where it says more than `code`. `cause` is for our own
    metrics, `retry_after_ms` when to try again, if anybody knows, and `queue_ms` how long it would
    have waited.
    """

    code: ErrorCode
    message: str
    status: int
    retryable: bool
    param: str | None = None
    reason: str | None = None
    retry_after_ms: int | None = None
    cause: str | None = None
    queue_ms: float | None = None

    @classmethod
    def of(cls, refused: Refused) -> Failed:
        return cls(
            refused.code,
            refused.message,
            refused.status,
            refused.retryable,
            refused.param,
            refused.reason,
        )


class Sink(Protocol):
    """Told of one request's progress, on the event loop, in this order.

    `accepted` at most once, `tokens` any number of times, then `end` or `failed`, once, unless
    the ticket was cancelled: then nothing more comes. Calls may come before `submit` returns.
    """

    def accepted(self, queue_ms: float, load: float) -> None:
        """It waits, or runs. `queue_ms` is how long it is expected to wait."""
        ...

    def tokens(self, position: int, ids: tuple[int, ...], text: str) -> None:
        """More of the answer: `position` is the index of `ids[0]` in the whole of it.

        `text` is what may be shown after these tokens: it may lag behind them by an unfinished
        character or by the beginning of a stop string, and `ids` may be empty at the end.
        """
        ...

    def end(
        self,
        finish_reason: FinishReason,
        prompt_tokens: int,
        completion_tokens: int,
        age_s: float | None = None,
    ) -> None:
        """The answer is whole. `completion_tokens` counts every token of it, also those that
        the client already had; the token that ends a turn is not counted. `age_s`: it was there
        already, since then."""
        ...

    def failed(self, failed: Failed) -> None: ...


class Ticket(Protocol):
    """The submitter's handle."""

    def cancel(self) -> None:
        """Stop the request; its slot is free by the next step. Safe at any time."""
        ...


# Refusals, each worded once.


def overloaded(waiting: int, retry_after_ms: int, queue_ms: float, cause: str = "full") -> Failed:
    message = f"The region is full: {waiting} requests wait already."
    return Failed(
        "overloaded",
        message,
        503,
        True,
        retry_after_ms=retry_after_ms,
        cause=cause,
        queue_ms=queue_ms,
    )


def above_level(retry_after_ms: int, queue_ms: float) -> Failed:
    """More urgent requests, or those of other users in this window, are all that fits."""
    return Failed(
        "overloaded",
        "The region is full: more is asked of it than it can answer.",
        503,
        True,
        retry_after_ms=retry_after_ms,
        cause="level",
        queue_ms=queue_ms,
    )


def foreseen(refusal: Refusal, retry_after_ms: int, queue_ms: float) -> Failed:
    """The forecast says that it cannot be in time."""
    return Failed(
        "overloaded",
        refusal.message,
        503,
        refusal.retryable,
        retry_after_ms=retry_after_ms if refusal.retryable else None,
        cause=refusal.reason,
        queue_ms=queue_ms,
    )


def given_up() -> Failed:
    """It waited longer than was foreseen; it may be in time elsewhere, just."""
    message = "The region is full: the answer could no longer be in time."
    return Failed("overloaded", message, 503, True, cause="given_up")


def internal() -> Failed:
    return Failed("internal", "The core failed to serve this request.", 500, True)


def draining() -> Failed:
    return Failed("draining", "This core is shutting down.", 503, True)


def too_late(cause: str | None = None) -> Failed:
    message = "The request's deadline came before its answer was whole."
    return Failed("deadline", message, 504, False, cause=cause)


def engine_fault(message: str) -> Failed:
    return Failed("engine", f"The engine failed: {message}", 500, True)
