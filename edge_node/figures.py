"""What this edge counts. Hot paths add to plain integers; a scrape reads them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from edge_node.cache.figures import CacheFigures
from runtime.metrics import Sample
from topology.load import LoadCounts

FIRST_TOKEN_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0)


class Histogram:
    """Counts by upper bound, in seconds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Figures:
    """Counters of one edge worker."""

    __slots__ = (
        "attempts",
        "cache_hits",
        "cache_misses",
        "cache_repeats",
        "caches",
        "cancelled",
        "failed_attempts",
        "first_token",
        "forwarded",
        "hedged",
        "hedges_won",
        "load",
        "moved",
        "region_load",
        "replies",
        "requests",
        "resumed",
        "retried",
        "stalled",
        "stalls",
        "streams_broken",
        "waited_for_ways",
    )

    def __init__(self) -> None:
        self.requests = 0  # to /v1/chat/completions
        self.replies: dict[int, int] = {}  # by status, of those that were not served well
        self.cache_hits = 0  # found by key, after the request was read
        self.cache_repeats = 0  # found by the request's bytes
        self.cache_misses = 0  # of requests that could have been there
        self.caches = CacheFigures()
        self.forwarded = 0  # answered whole by a region
        self.attempts = 0
        self.failed_attempts = 0
        self.resumed = 0  # attempts that carried on where another region stopped
        self.retried = 0  # attempts after a failure, that the budget paid for
        self.hedged = 0  # requests sent a second time because the first token was late
        self.hedges_won = 0  # those whose answer came from the second one
        self.moved = 0  # answers that left a region since it was drained
        self.stalls = 0  # regions found to stand still
        self.stalled = 0  # attempts given up because of that
        self.cancelled = 0  # exchanges that we gave up
        self.streams_broken = 0  # streams that ended with an error event
        self.waited_for_ways = 0  # answers that went on when a way that had died lived again
        self.first_token = Histogram(FIRST_TOKEN_BOUNDS_S)
        self.region_load: dict[str, float] = {}  # as each region last said
        self.load = LoadCounts()  # for load reports, which take it away each second

    def keep(self, regions: Iterable[str]) -> None:
        """Forget what every region but these said."""
        kept = set(regions)
        self.region_load = {r: load for r, load in self.region_load.items() if r in kept}

    def samples(self) -> Iterable[Sample]:
        one = (
            ("requests", "Chat requests received.", self.requests),
            ("cache_misses", "Cacheable requests that were not cached.", self.cache_misses),
            ("forwarded", "Requests that a region answered whole.", self.forwarded),
            ("attempts", "Requests sent to regions, retries included.", self.attempts),
            ("failed_attempts", "Attempts that failed.", self.failed_attempts),
            ("resumed", "Attempts that continued another region's answer.", self.resumed),
            ("retried", "Attempts after a failure, paid from the budget.", self.retried),
            ("hedged", "Requests sent twice, the first token being late.", self.hedged),
            ("hedges_won", "Those that the second one answered.", self.hedges_won),
            ("moved", "Answers that left a drained region.", self.moved),
            ("stalls", "Times that everything in a region stood still.", self.stalls),
            ("stalled", "Attempts given up because of that.", self.stalled),
            ("cancelled", "Exchanges given up because nobody waited.", self.cancelled),
            (
                "waited_for_ways",
                "Answers that waited for a way to live again.",
                self.waited_for_ways,
            ),
            ("streams_broken", "Streams that ended with an error.", self.streams_broken),
        )
        for name, text, value in one:
            yield Sample(f"tradewind_edge_{name}_total", text, value)
        hits = (("request", self.cache_hits), ("bytes", self.cache_repeats))
        for by, value in hits:
            yield Sample(
                "tradewind_edge_cache_hits_total", "Answered from the cache.", value, {"by": by}
            )
        yield from self.caches.samples()
        for status, count in sorted(self.replies.items()):
            labels = {"status": str(status)}
            yield Sample("tradewind_edge_errors_total", "Error replies.", count, labels)
        for region, load in sorted(self.region_load.items()):
            labels = {"region": region}
            yield Sample("tradewind_edge_region_load", "Load, as the region says.", load, labels)


class FirstToken(Collector):
    """Exposes the time from a forwarded request's arrival to its first token."""

    def __init__(self, read: Callable[[], Histogram]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        histogram, total, buckets = self._read(), 0, []
        for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
            total += count
            buckets.append((str(bound), total))
        family = HistogramMetricFamily(
            "tradewind_edge_first_token_seconds", "From a request's arrival to its first token."
        )
        family.add_metric([], buckets, histogram.total)
        return [family]
