"""What the caches of one edge worker have done, for its metrics."""

from __future__ import annotations

from collections.abc import Iterable

from runtime.metrics import Sample


class CacheFigures:
    """Plain integers, read at scrape time. Hits in memory are counted in `edge_node.figures`."""

    __slots__ = (
        "failures_noted",
        "failures_told",
        "regional_hits",
        "revalidated",
        "revalidations",
        "stale_disk",
        "stale_memory",
    )

    def __init__(self) -> None:
        self.failures_noted = 0  # requests remembered that can only fail
        self.failures_told = 0  # answered from that memory
        self.revalidations = 0  # answers asked for anew in the background
        self.revalidated = 0  # those that came
        self.stale_memory = 0  # given although their time was over
        self.stale_disk = 0
        self.regional_hits = 0  # forwarded, and the region had the answer already

    def samples(self) -> Iterable[Sample]:
        name = "tradewind_edge_cache_"
        text = "Answers given past their end."
        for tier, value in (("memory", self.stale_memory), ("disk", self.stale_disk)):
            yield Sample(name + "stale_total", text, value, {"tier": tier})
        one = (
            ("revalidations", "Answers asked for anew in the background.", self.revalidations),
            ("revalidated", "Those that came.", self.revalidated),
            ("failures_noted", "Requests remembered that can only fail.", self.failures_noted),
            ("failures_told", "Requests that failed from memory.", self.failures_told),
            ("regional_hits", "Answers that the region had already.", self.regional_hits),
        )
        for what, text, value in one:
            yield Sample(f"{name}{what}_total", text, value)
