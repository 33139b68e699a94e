"""Errors of the edge, grouped by who is at fault. front/respond.py maps them to HTTP."""

from __future__ import annotations

from typing import Literal, TypeAlias

from runtime.errors import TradewindError
from runtime.identity import Principal
from topology.overlay.errors import OverlayProtocolError, PathDown, RegionFailure
from topology.routing import Decision

ShelfFaultKind: TypeAlias = Literal["damaged", "full", "space", "reopen", "busy", "other"]

# The request.


class BodyTooLarge(TradewindError):
    """The body is larger than the policy allows."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The request body is larger than {limit_bytes} bytes.")
        self.limit_bytes = limit_bytes


class InvalidKey(TradewindError):
    """The API key is missing or belongs to nobody."""

    def __init__(self, given: bool) -> None:
        super().__init__(
            "Incorrect API key provided."
            if given
            else "You didn't provide an API key. Send it as 'Authorization: Bearer <key>'."
        )


class InvalidHeader(TradewindError):
    """A request header that means something to us has a value that does not."""

    def __init__(self, name: str, allowed: str) -> None:
        super().__init__(f"The header '{name}' must be {allowed}.")
        self.name = name


# The configuration.


class Refused(TradewindError):
    """No region may serve this tenant and model, or none that may is reachable."""

    def __init__(self, decision: Decision, tenant: str, model: str) -> None:
        super().__init__(f"{decision.refusal}: {tenant} for {model}")
        self.decision = decision
        self.tenant = tenant
        self.model = model


class NotReady(TradewindError):
    """This edge has no configuration yet: neither from the control plane nor on disk."""

    retryable = True


class ConfigurationStale(TradewindError):
    """Nobody has confirmed the configuration for longer than the policy allows."""

    retryable = True


class WrongIdentity(TradewindError):
    """The certificate given to this edge was issued for somebody else."""

    def __init__(self, found: Principal, expected: Principal) -> None:
        super().__init__(
            f"the certificate is for {found}, and this is {expected}",
            hint=f"issue one for {expected} and name it under `identity`",
        )


# The regions.


NO_ROOM = "More is asked than can be answered"  # how an edge's own refusals begin


class Overloaded(TradewindError):
    """No region had room for it in time. `retry_s`: when a try may succeed."""

    retryable = True

    def __init__(self, why: str, retry_s: float) -> None:
        super().__init__(f"{NO_ROOM}: {why}. Please try again in {retry_s:.3g} s.")
        self.why = why
        self.retry_s = retry_s


class RegionSilent(TradewindError):
    """A region took the request and then sent nothing for too long."""

    retryable = True

    def __init__(self, region: str, after_s: float) -> None:
        super().__init__(f"{region} sent nothing for {after_s:g} s")
        self.region = region


class RegionStalled(TradewindError):
    """Everything that a region had begun for this edge stands still."""

    retryable = True

    def __init__(self, region: str) -> None:
        super().__init__(f"{region} stands still")
        self.region = region


AttemptError = PathDown | RegionFailure | OverlayProtocolError | RegionSilent | RegionStalled


class AttemptsExhausted(TradewindError):
    """Every region that was tried failed; `last` is what the last one did.

    `streaming` says that part of the answer had reached the client already, `stands_in` that
    another model was asked than the client named.
    """

    def __init__(
        self,
        last: AttemptError,
        tried: tuple[str, ...],
        streaming: bool,
        stands_in: bool = False,
    ) -> None:
        super().__init__(f"tried {', '.join(tried)}; {last.message}")
        self.last = last
        self.tried = tried
        self.streaming = streaming
        self.stands_in = stands_in


# The disk.


class ShelfFault(TradewindError):
    """Answers on disk cannot be read or written now; nobody who is served notices.

    `kind`: `damaged` (what is there must go), `full` (its file), `space` (the disk), `reopen`
    (another process has made it larger, or a write failed midway: open it again), `busy` (others
    have it, and it is damaged), or `other`.
    """

    def __init__(self, kind: ShelfFaultKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
