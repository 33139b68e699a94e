"""What a DNS process counts, in a form that travels from its workers and is exposed once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import Struct, field

from control_plane.geodns.answers import Answerer
from control_plane.geodns.server import DnsServer


class Figures(Struct):
    """Counters and fills of one process, or of several added up."""

    queries: dict[str, int] = field(default_factory=dict)  # "<type> <rcode>" -> answered
    counters: dict[str, int] = field(default_factory=dict)
    gauges: dict[str, int] = field(default_factory=dict)

    def add(self, other: Figures) -> None:
        for mine, theirs in (
            (self.queries, other.queries),
            (self.counters, other.counters),
            (self.gauges, other.gauges),
        ):
            for name, value in theirs.items():
                mine[name] = mine.get(name, 0) + value

    def without_gauges(self) -> Figures:
        """What stays of a process that is gone: a counter must never fall."""
        return Figures(dict(self.queries), dict(self.counters), {})


def figures_of(answerer: Answerer, server: DnsServer) -> Figures:
    """The figures of this process."""
    queries: dict[str, int] = {}
    for kind, rcode, count in answerer.tally:
        queries[f"{kind} {rcode}"] = count
    counters = {
        "hot_misses": answerer.misses,
        "failures": answerer.failures,
        "generations": answerer.hot.turns + answerer.tailored.turns,
        "udp_dropped": sum(endpoint.dropped for endpoint in server.datagrams),
        "tcp_evicted": sum(stream.evicted for stream in server.streams),
        "tcp_timed_out": sum(stream.timed_out for stream in server.streams),
    }
    gauges = {
        "hot": len(answerer.hot),
        "hot_limit": 2 * answerer.hot.limit,
        "tailored": len(answerer.tailored),
        "tailored_limit": 2 * answerer.tailored.limit,
        "origins": len(answerer.origins.known),
        "origins_limit": 2 * answerer.origins.known.limit,
        "tcp": sum(len(stream) for stream in server.streams),
    }
    return Figures(queries, counters, gauges)


def labelled(queries: dict[str, int]) -> Iterator[tuple[str, str, int]]:
    """(type, rcode, count) from `Figures.queries`."""
    for name, count in queries.items():
        kind, _, rcode = name.partition(" ")
        yield kind, rcode, count


def total(parts: Iterable[Figures]) -> Figures:
    """The sum of several processes' figures."""
    result = Figures()
    for part in parts:
        result.add(part)
    return result
