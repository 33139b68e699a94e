"""Whose fault it is that an attempt failed. Pure."""

from __future__ import annotations

from edge_node.errors import AttemptError, RegionStalled
from topology.overlay.errors import PathDown, RegionFailure


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


def blames_tokens(error: AttemptError) -> bool:
    """Whether a region refused what another region had given: the client never sent those."""
    return isinstance(error, RegionFailure) and error.failure.param == "resume_tokens"
