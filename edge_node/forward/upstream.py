"""What forwarding needs of the way to the regions. Tunnels and the in-memory one satisfy it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from topology.overlay.exchange import Take
from topology.overlay.frames import Accept, End, Request, Tokens
from topology.routing import Views


class Exchange(Protocol):
    """One request under way in one region; see `topology.overlay.tunnel.Exchange`."""

    async def next(self) -> Accept | Tokens | End:
        """The next frame. Raises `RegionFailure`, `PathDown` or `OverlayProtocolError`."""
        ...

    async def pour(self, take: Take) -> Accept | End:
        """Every TOKENS to `take` as it arrives, no more before what it returned is done; returns
        the first other frame. Raises as `next`, and whatever `take` does."""
        ...

    def cancel(self) -> None: ...


class Upstream(Protocol):
    """The regions, as one edge reaches them."""

    def views(self) -> Views:
        """What is reachable now. The same object as before when nothing has changed."""
        ...

    def open(self, region: str, request: Request, body: bytes, relay: str = "") -> Exchange:
        """Send a request to a region, through `relay` where one is named.

        Raises `PathDown` when it cannot be sent.
        """
        ...

    def distrust(
        self, region: str, why: str, request_ids: Collection[str] = ()
    ) -> Collection[str] | None:
        """It answers probes and does not serve those requests: choose others for a while.

        None: the region is meant. Else some of its cores are, and these are the requests there.
        """
        ...

    def fault(self, region: str, why: str, request_id: str) -> None:
        """A request failed by the region's fault: not by its way's, nor for want of room."""
        ...

    def stuck(self) -> Collection[str]:
        """Ids of requests whose core stands still while others of its region serve."""
        ...

    def note_queue(self, region: str, queue_ms: float) -> None:
        """How long the region said, with an ACCEPT, that requests wait there."""
        ...

    def trust(self, region: str) -> None:
        """An answer of the region came whole: whoever distrusts it may think again."""
        ...
