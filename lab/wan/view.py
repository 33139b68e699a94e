"""Links as people see them: one row a link, two where its directions differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lab.wan.control import LinkState, WayState
from lab.wan.units import show_bandwidth, show_ms, show_share

HEADINGS = (
    "LINK", "DIRECTION", "STATE", "LATENCY", "JITTER", "LOSS", "BANDWIDTH", "OTHER",
    "SENT", "LOST", "CUT", "OVERFLOWED", "REFUSED",
)  # fmt: skip
RATE = "SENT/S"


def rows(
    links: Sequence[LinkState], before: Mapping[str, LinkState], elapsed_s: float
) -> Iterator[tuple[str, ...]]:
    """A row for each link, or for each direction where they differ; with the packets a second
    since `before` where that is known."""
    for link in links:
        earlier = before.get(link.name)
        ways = (("out", link.out), ("back", link.back))
        if link.out.figures == link.back.figures and link.out.up == link.back.up:
            groups = [("both", [link.out, link.back])]
        else:
            groups = [(name, [way]) for name, way in ways]
        for name, group in groups:
            row = _row(link.name, name, group)
            if earlier is not None and elapsed_s > 0:
                held = {"out": [earlier.out], "back": [earlier.back]}
                past = held.get(name, [earlier.out, earlier.back])
                sent = sum(w.counters.sent for w in group) - sum(w.counters.sent for w in past)
                row = (*row, f"{sent / elapsed_s:.0f}")
            yield row


def _row(link: str, direction: str, ways: Sequence[WayState]) -> tuple[str, ...]:
    figures = ways[0].figures
    counted = [way.counters for way in ways]
    return (
        link,
        direction,
        state(ways[0]),
        show_ms(figures.latency_ms),
        show_ms(figures.jitter_ms),
        show_share(figures.loss),
        show_bandwidth(figures.bandwidth_bit_per_s),
        _other(ways[0]),
        *(str(sum(getattr(c, name) for c in counted)) for name in ("sent", "lost", "cut")),
        str(sum(way.counters.overflowed + way.unread for way in ways)),
        str(sum(counters.refused for counters in counted)),
    )


def state(way: WayState) -> str:
    """Whether it carries anything; what was set for a while says how much longer."""
    figures = way.figures
    if figures.cut:
        text = "cut"
    elif figures.flap is not None:
        text = "flapping, up" if way.up else "flapping, down"
    else:
        text = "up"
    return f"{text} ({max(way.left_s.values()):.1f}s more)" if way.left_s else text


def _other(way: WayState) -> str:
    figures = way.figures
    parts = []
    if figures.flap is not None:
        how = "random, mean " if figures.flap.random else ""
        parts.append(f"flap {how}{show_ms(figures.flap.up_ms)}/{show_ms(figures.flap.down_ms)}")
    if figures.duplicate:
        parts.append(f"duplicate {show_share(figures.duplicate)}")
    if figures.reorder:
        parts.append(f"reorder {show_share(figures.reorder)}")
    if figures.bandwidth_bit_per_s:
        room = figures.queue_bytes
        parts.append(f"queue {room} bytes" if room else f"queue {show_ms(figures.queue_ms)}")
    return ", ".join(parts)
