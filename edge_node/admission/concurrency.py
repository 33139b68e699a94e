"""How many requests one edge worker has in a region at once: learnt from the delay there. Pure.

What is measured is how long requests wait in the region before they are worked on, never how long
answers take: these differ in length, and a full region's are as long as an idle one's. Of `n`
requests there, `rate * queue` wait (Little's law), and `rate * target` may. So the error is known
in requests, and the limit is moved by half of it in each window, whatever the region's size. What
each worker adds beside (`_headroom`) grows less than its part does: that moves workers which
differ towards equal parts. While nobody waits, the limit grows by a factor: as much as the region's
load leaves room for, twofold at most; once the end of the room was met, by little at first.
"""

from __future__ import annotations

WINDOW_S = 0.2
START = 64.0
_AIM = 0.7  # times the target: `_headroom` of all keeps the delay above what is aimed at
_GAIN = 0.5  # of the error, in one window,
_CUT_GAIN = 0.8  # where it is too many
_CUT_MOST = 0.7  # what is left of the limit after one window, at least
_GROW_MOST = 2.0  # times the limit, in one window
_GROW_LEAST = 0.05  # of the limit, once the end of the room was met
_REFUSED_MOST = 0.05  # of those sent: more is a sign of its own that the room ends
_FORGETS = 1.1  # times a limit that nobody needs, up to where it began
_IN_USE = 0.8  # of the limit: less is no ground to raise it
_BESIDE = 3  # requests above the limit that it may be due to: one of each tier
_SLACK = 1.5  # times what was in use, while the region is full and nobody asks for more here


class Concurrency:
    """Of one region. `now` in seconds; where it goes back or far ahead, a window is lost.

    `pressed`, to be set: somebody was kept out by the limit. `lost`: places that the region refused
    to give in this window; they are not asked for again before it closes, since a refusal comes so
    soon that each would be refused many times. `peak`: how many were there at once in this window,
    which lasts from `opened` to `closes`.
    """

    __slots__ = (
        "_excess",
        "_least",
        "_load",
        "_most",
        "_sum_s",
        "_target_s",
        "_told",
        "closes",
        "limit",
        "lost",
        "opened",
        "peak",
        "pressed",
    )

    def __init__(self, least: int, most: int, target_s: float) -> None:
        self.limit = START
        self.pressed = False
        self._excess = _GROW_MOST - 1
        self.opened = self.closes = 0.0
        self.peak = self._told = self.lost = 0
        self._sum_s = self._load = 0.0
        self.use(least, most, target_s)

    def use(self, least: int, most: int, target_s: float) -> None:
        self._least, self._most = float(least), float(max(least, most))
        self._target_s = target_s
        self.limit = self._clamped(self.limit)

    def sent(self, in_flight: int) -> None:
        """There are so many now."""
        if in_flight > self.peak:
            self.peak = in_flight

    def waits(self, queue_s: float, load: float) -> None:
        """The region said that one waits so long, and how full it is: 1 is full, 0 may mean that
        it does not know."""
        self._sum_s += queue_s
        self._told += 1
        if load > self._load:
            self._load = load

    def refused(self) -> None:
        """The region refused one for want of room."""
        self.lost += 1

    def due(self, now: float) -> bool:
        return not self.opened <= now < self.closes

    def turn(self, now: float, in_flight: int, rate: float) -> bool:
        """Close the window, if it is `due`; whether the limit rose. `rate`: requests of ours that
        end there in a second; 0: not known."""
        before = self.limit
        if (self._told or self.lost) and self.opened < self.closes <= now:
            peak = min(self.peak, max(in_flight + 1, int(before)))
            self.limit = self._clamped(self._next(peak, rate))
        self.opened, self.closes = now, now + WINDOW_S
        self._sum_s, self._load, self._told, self.lost = 0.0, 0.0, 0, 0
        self.peak, self.pressed = in_flight, False
        return self.limit > before

    def _next(self, there: int, rate: float) -> float:
        """`there`: how many of ours were in the region when it said what it said."""
        limit, target_s = self.limit, self._target_s
        refused = self.lost / (self._told + self.lost)
        if refused > _REFUSED_MOST:  # its end is nearer than its queue lets one think
            self._excess = _GROW_LEAST
            return min(limit, max(_CUT_MOST, 1 - refused / 2) * there)
        queue_s = self._sum_s / self._told
        aim_s = _AIM * target_s
        in_use = self.pressed or there >= _IN_USE * limit
        if queue_s > target_s:
            self._excess = _GROW_LEAST
            over = rate * (queue_s - aim_s) if rate > 0 else there * (1 - aim_s / queue_s)
            kept = max(_CUT_MOST * there, there - _CUT_GAIN * over)
            if there > limit + _BESIDE:
                return min(limit, kept)
            if in_use:
                return min(limit, kept) + self._headroom(rate)
            return min(limit, max(kept, _SLACK * there) + self._headroom(rate))
        if not in_use:
            if limit < START and queue_s < target_s / 2 and self._load < 1:
                return min(START, limit * _FORGETS)  # what a storm has taught
            return limit
        grown = limit + _GAIN * rate * (aim_s - queue_s) + self._headroom(rate)
        if queue_s < target_s / 2:
            room = 1 / self._load - 1 if self._load > 0 else _GROW_MOST
            grown = max(grown, limit * (1 + min(self._excess, max(_GROW_LEAST, room))))
            self._excess = min(_GROW_MOST - 1, 2 * self._excess)
        return min(max(grown, _CUT_MOST * limit), limit * _GROW_MOST)

    def _headroom(self, rate: float) -> float:
        return 0.5 * float((rate * self._target_s + 1) ** (2 / 3))

    def _clamped(self, limit: float) -> float:
        return min(self._most, max(self._least, limit))
