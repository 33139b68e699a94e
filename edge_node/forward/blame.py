"""Whose fault it is that an attempt failed. Pure."""

from __future__ import annotations

from edge_node.errors import AttemptError, RegionSilent, RegionStalled
from topology.overlay.errors import OverlayProtocolError, PathDown, RegionFailure

BROKEN = frozenset(("engine", "internal"))


def is_clients_fault(error: AttemptError) -> bool:
    """Whether the request itself was refused, and not for want of room."""
    if not isinstance(error, RegionFailure):
        return False
    return 400 <= error.failure.status < 500 and error.failure.status != 429


def is_death(error: AttemptError) -> bool:
    """Whether a way or a region went away under the request, rather than refuse it."""
    if isinstance(error, RegionFailure):
        return error.failure.code == "draining"
    return isinstance(error, PathDown | RegionStalled)


def fault_of(error: AttemptError) -> str:
    """What the region did wrong, in words; empty: nothing. That it has no room, is closing or
    was too late is none, nor that the way to it died; that all of it stands still is told apart,
    by `Upstream.distrust`."""
    if isinstance(error, RegionFailure):
        failure = error.failure
        faulty = failure.code in BROKEN and failure.status >= 500
        return f"it answered {failure.status}, {failure.code}" if faulty else ""
    if isinstance(error, OverlayProtocolError):
        return "it broke the protocol"
    return "it took a request and gave nothing" if isinstance(error, RegionSilent) else ""


def is_deadline(error: AttemptError) -> bool:
    """Whether the time that the region was given had passed, or would not have been enough."""
    return isinstance(error, RegionFailure) and error.failure.code == "deadline"


def blames_tokens(error: AttemptError) -> bool:
    """Whether a region refused what another region had given: the client never sent those."""
    return isinstance(error, RegionFailure) and error.failure.param == "resume_tokens"
