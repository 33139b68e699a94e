"""How much is lost of what is sent one way, lately. Pure: `now` is an argument, in seconds."""

from __future__ import annotations

from collections import deque

_SLICE_S = 0.5
_SLICES = 60  # remembered at most: half a minute
_ENOUGH = 30  # sent; older slices are not asked once so many are seen
_NEWEST = 2  # slices that always count


class LossWindow:
    """The share that was lost of the last 30 sent or so, or of the last second if those were more.

    Few are sent on an idle path and many on a busy one, so that neither a time nor a number alone
    would do: nothing would be known of the one, or nothing new of the other.
    """

    __slots__ = ("_slices",)

    def __init__(self) -> None:
        self._slices: deque[list[int]] = deque(maxlen=_SLICES)  # [which, sent, lost], oldest first

    def add(self, now: float, sent: int, lost: int) -> None:
        """Of `sent` more, `lost` did not arrive. A negative loss takes back what was taken for
        lost and came after all."""
        if not sent and not lost:
            return
        which = int(now / _SLICE_S)
        if not self._slices or self._slices[-1][0] < which:
            self._slices.append([which, 0, 0])
        newest = self._slices[-1]
        newest[1] += sent
        newest[2] += lost

    def share(self, now: float, least: int = 1) -> float | None:
        """0 to 1; None when fewer than `least` were sent of late."""
        sent = lost = 0
        this = int(now / _SLICE_S)
        for which, some, gone in reversed(self._slices):
            if which <= this - _SLICES or (sent >= _ENOUGH and which <= this - _NEWEST):
                break
            sent += some
            lost += gone
        return min(1.0, max(0.0, lost / sent)) if sent >= max(1, least) else None
