"""Errors of the overlay, grouped by cause: the peer's frames, the path, the region."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.errors import TradewindError

if TYPE_CHECKING:
    from topology.overlay.frames import Failure


class OverlayProtocolError(TradewindError):
    """The peer sent bytes that are not this protocol, or frames in an order it forbids."""


class FrameTooLarge(OverlayProtocolError):
    """A frame is larger than the protocol allows, ours before sending or the peer's."""


class PathDown(TradewindError):
    """The way to a region does not work now: not connected, cut, or silent for too long.

    Whether the region saw the request is unknown; another region may be asked.
    """

    retryable = True

    def __init__(self, region: str, reason: str) -> None:
        super().__init__(
            f"no path to {region}: {reason}",
            hint="the tunnel reconnects by itself; ask another region meanwhile",
        )
        self.region = region
        self.reason = reason


class RegionFailure(TradewindError):
    """The region answered that it will not, or cannot go on to, serve the request."""

    def __init__(self, region: str, failure: Failure) -> None:
        super().__init__(f"{region} answered {failure.code}: {failure.message}")
        self.region = region
        self.failure = failure
        self.retryable = failure.retryable


class PeerRefused(TradewindError):
    """A peer's certificate is missing, is not the mesh's, has expired, or has the wrong role."""
