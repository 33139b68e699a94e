"""How fast nodes are taken in: after an outage they all come at once. Pure."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

_ARRIVALS_KEPT = 20_000  # principals whose rate is remembered


class Admission:
    """A token bucket that hands out places in a queue: `reserve` says how long to wait.

    Up to `burst` nodes come in at once, then `rate_per_s`. A node that would wait longer than
    `longest_wait_s` is turned away instead: it tries another replica, or comes back.
    """

    def __init__(self, rate_per_s: float, burst: int, longest_wait_s: float) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._longest_wait_s = longest_wait_s
        self._tokens = float(burst)
        self._at_s: float | None = None

    def reserve(self, now_s: float) -> float | None:
        """Seconds until this node may come in; None: turned away."""
        if self._at_s is not None:
            gained = (now_s - self._at_s) * self._rate_per_s
            self._tokens = min(float(self._burst), self._tokens + gained)
        self._at_s = now_s
        wait_s = max(0.0, (1.0 - self._tokens) / self._rate_per_s)
        if wait_s > self._longest_wait_s:
            return None
        self._tokens -= 1.0
        return wait_s


class Shares:
    """What one certificate may take, so that a node gone wild harms itself and no other.

    Three bounds for each principal: streams open at once, arrivals per second, and streams that
    were ended but whose peer does not take the end (it reads nothing: gRPC keeps such a call, with
    the response in it, as long as its connection lives). `arrive` first; an empty answer is a
    stream that counts until `leave`.
    """

    def __init__(self, streams_max: int, arrivals_per_s: float, ending_max: int = 4) -> None:
        self._streams_max = streams_max
        self._arrivals_per_s = arrivals_per_s
        self._ending_max = ending_max
        self._streams: Counter[str] = Counter()
        self._ending: Counter[str] = Counter()
        self._arrivals: OrderedDict[str, Admission] = OrderedDict()

    def arrive(self, principal: str, now_s: float) -> str:
        """Why this stream is not to be served; empty: it is."""
        if self._streams[principal] >= self._streams_max:
            return f"{principal} has {self._streams_max} streams open"
        if self._ending[principal] >= self._ending_max:
            return f"{principal} does not read what it is sent on {self._ending_max} streams"
        if self._arrivals_of(principal).reserve(now_s) is None:
            return f"{principal} opens more than {self._arrivals_per_s:g} streams a second"
        self._streams[principal] += 1
        return ""

    def _arrivals_of(self, principal: str) -> Admission:
        arrivals = self._arrivals.pop(principal, None)
        if arrivals is None:
            arrivals = Admission(self._arrivals_per_s, self._streams_max, 0.0)
        self._arrivals[principal] = arrivals
        while len(self._arrivals) > _ARRIVALS_KEPT:
            self._arrivals.popitem(last=False)
        return arrivals

    def leave(self, principal: str) -> None:
        _less(self._streams, principal)

    @contextmanager
    def ending(self, principal: str) -> Iterator[None]:
        """While a stream's end is on its way."""
        self._ending[principal] += 1
        try:
            yield
        finally:
            _less(self._ending, principal)


def _less(counts: Counter[str], principal: str) -> None:
    counts[principal] -= 1
    if counts[principal] <= 0:
        del counts[principal]
