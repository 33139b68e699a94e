"""This core as a relay: where datagrams for another region go, and what it says of them."""

from __future__ import annotations

from collections.abc import Iterable

from runtime.metrics import Sample
from topology.overlay.relay import UdpRelay
from topology.resources import Key
from topology.snapshot import Snapshot

_PREFIX = "tradewind_core_relay_"


def address_of(snapshot: Snapshot, own: str, region: str, turn: int) -> str | None:
    """The "host:port" of a core of `region`: at the link from region `own` to it, when that names
    one, else the `turn`th core, modulo their number. None for itself and for the unknown."""
    spec = snapshot.regions.get(region)
    if spec is None or region == own:
        return None
    link = snapshot.link(Key("Region", own), Key("Region", region))
    if link is not None and link.address is not None:
        return link.address
    return spec.cores[turn % len(spec.cores)]


def samples(relay: UdpRelay) -> Iterable[Sample]:
    """Its metrics."""
    counters = relay.counters
    yield Sample(f"{_PREFIX}bindings", "Ways that are open through here.", relay.bindings)
    yield Sample(f"{_PREFIX}bindings_max", "How many may be.", relay.max_bindings)
    yield Sample(f"{_PREFIX}bound_total", "Ways that were opened.", counters.bound)
    for name, text in (
        ("ended", "Ways that nobody used any more."),
        ("refused", "Ways that were not opened."),
        ("dropped", "Datagrams that were not passed on."),
    ):
        for reason, count in counters.by_reason(name):
            yield Sample(f"{_PREFIX}{name}_total", text, count, {"reason": reason})
    for direction, datagrams, size in (
        ("out", counters.forwarded, counters.forwarded_bytes),
        ("back", counters.returned, counters.returned_bytes),
    ):
        labels = {"direction": direction}
        yield Sample(f"{_PREFIX}datagrams_total", "Passed on.", datagrams, labels)
        yield Sample(f"{_PREFIX}bytes_total", "Passed on, without heads.", size, labels)
    text = "Times that nobody listened at a region's address."
    yield Sample(f"{_PREFIX}unreachable_total", text, counters.unreachable)
