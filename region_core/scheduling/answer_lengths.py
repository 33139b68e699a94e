"""How long answers are, lately: what is still to come of one that has got so far.

The last answers are kept, and of those that were cut (by their limit, a deadline, a client that
left) and of those under way that they are longer than that: the Kaplan-Meier estimate of survival.
Without those under way, short answers, which end first, would be all that is known after a start.
Before any answer was seen, a few guesses stand in for them; the first real ones push them out.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence

KEPT = 128
_REFITS = 8  # answers between fits
_GUESSES = (16, 32, 64, 128, 256)


class AnswerLengths:
    """Pure. Memory: the last `KEPT` answers."""

    __slots__ = ("_area", "_at", "_died", "_guesses", "_news", "_seen", "_survive", "_under_way",
                 "variation")  # fmt: skip

    def __init__(self) -> None:
        self._seen: deque[tuple[int, bool]] = deque(maxlen=KEPT)
        self._guesses = list(_GUESSES)
        self._news = 0
        self._under_way: tuple[int, ...] = ()
        self._fit()

    def look(self, under_way: Sequence[int]) -> None:
        """Take account of answers that have got so far, and have not ended."""
        self._under_way = tuple(under_way)
        self._fit()

    def ended(self, tokens: int, whole: bool) -> None:
        """An answer ended after `tokens`; `whole` says that it ended by itself."""
        self._seen.append((max(1, tokens), whole))
        if self._guesses:
            self._guesses.pop()
        self._news += 1
        if self._news >= _REFITS or len(self._seen) < _REFITS:
            self._fit()

    def expected(self, limit: int, done: int = 0) -> float:
        """How many more tokens an answer has that may have `limit`, and has `done`; at least 1."""
        if limit <= done + 1:
            return 1.0
        survive = self._survive[bisect_right(self._at, done) - 1]
        if survive <= 0.0:
            return _as_long_again(limit, done)
        left = (self._below(limit) - self._below(done)) / survive
        return max(1.0, min(left, limit - done))

    def within(self, share: float, limit: int, done: int = 0) -> float:
        """How many more tokens such an answer has at most, in a `share` of cases; at least 1."""
        survive = self._survive[bisect_right(self._at, done) - 1]
        if survive <= 0.0:
            return _as_long_again(limit, done)
        index = bisect_left(self._died, 1.0 - survive * (1.0 - share) - 1e-9)
        end = self._at[index] if index < len(self._at) else 2 * self._at[-1]
        return float(max(1, min(end, limit) - done))

    def _below(self, tokens: int) -> float:
        """The area under the curve of survival up to `tokens`."""
        tokens = min(tokens, 2 * self._at[-1])  # of those that were cut: as long again, at most
        index = bisect_right(self._at, tokens) - 1
        return self._area[index] + (tokens - self._at[index]) * self._survive[index]

    def _fit(self) -> None:
        self._news = 0
        seen = [*self._seen, *((tokens, True) for tokens in self._guesses)]
        seen += ((tokens, False) for tokens in self._under_way)
        seen.sort()
        at, survive, area, moment = [0], [1.0], [0.0], 0.0
        left, alive = len(seen), 1.0
        for tokens, whole in seen:
            width, middle = tokens - at[-1], (tokens + at[-1]) / 2
            area.append(area[-1] + width * alive)
            moment += 2 * middle * width * alive
            if whole:
                alive *= 1.0 - 1.0 / left
            left -= 1
            at.append(tokens)
            survive.append(alive)
        self._at, self._survive, self._area = at, survive, area
        self._died = [1.0 - alive for alive in survive]
        self.variation = max(0.0, moment / area[-1] ** 2 - 1.0)  # variance by squared mean


def _as_long_again(limit: int, done: int) -> float:
    """Longer than any that was seen."""
    return max(1.0, min(limit - done, done / 2))
