"""What becomes of each packet of one direction. Pure and seeded: `now` is an argument."""

from __future__ import annotations

from random import Random

from msgspec import Struct

from lab.wan.figures import Figures
from lab.wan.flapping import Flapping

HEADERS_BYTES = 28  # of IPv4 and UDP, which take their time on the wire too
_ROUNDING_S = 1e-9
_REORDER_S = 0.01  # a packet that is overtaken is late by up to this


class Dropped(Struct):
    """Packets that did not go on, by why."""

    lost: int = 0  # by chance
    cut: int = 0  # while the link was cut, or flapped down
    overflowed: int = 0  # no room in the queue before the wire


class Impairment:
    """Decides when, and whether, each packet of one direction arrives.

    Four numbers are drawn for each packet whatever the figures are, so that the fate of the
    n-th does not depend on what was set while those before it passed. `flap_seed` is for
    random flapping: directions that share it go down together.
    """

    def __init__(self, figures: Figures, seed: str, flap_seed: str = "", now: float = 0.0) -> None:
        self.dropped = Dropped()
        self.duplicated = 0
        self.reordered = 0
        self._draw = Random(seed).random
        self._flap_seed = flap_seed or seed
        self._figures = figures
        self._last = 0.0  # when the packet before arrives
        self._free = 0.0  # when the wire is free
        self._flapping: Flapping | None = None
        self._begin(now)

    def use(self, figures: Figures, now: float) -> None:
        """Take new figures for packets from `now` on. What is under way arrives as it would
        have; a packet behind it may overtake it, as when a route changes."""
        before, self._figures = self._figures, figures
        if figures.flap != before.flap:
            self._begin(now)
        self._last = 0.0
        if figures.bandwidth_bit_per_s != before.bandwidth_bit_per_s:
            self._free = 0.0  # those that wait have their times already

    def _begin(self, now: float) -> None:
        flap = self._figures.flap
        self._flapping = Flapping(flap, now, Random(self._flap_seed)) if flap else None

    def up(self, now: float) -> bool:
        """Whether the link carries anything: neither cut nor flapped down."""
        flapping = self._flapping
        return not self._figures.cut and (flapping is None or flapping.up(now))

    def arrivals(self, now: float, size: int) -> tuple[float, ...]:
        """When a packet of `size` bytes sent at `now` (seconds) arrives: not at all, once, or
        twice. Packets stay in order: jitter delays those behind, as a queue does."""
        draw, figures = self._draw, self._figures
        loss, jitter, twice, late = draw(), draw(), draw(), draw()
        if (figures.cut or self._flapping is not None) and not self.up(now):
            self.dropped.cut += 1
            return ()
        if loss < figures.loss:
            self.dropped.lost += 1
            return ()
        sent = now
        if figures.bandwidth_bit_per_s:
            sent = self._serialised(now, size)
            if not sent:
                self.dropped.overflowed += 1
                return ()
        due = sent + (figures.latency_ms + jitter * figures.jitter_ms) / 1000
        if due < self._last:
            due = self._last
        if late < figures.reorder:
            self.reordered += 1
            due += _REORDER_S * (late / figures.reorder)
        else:
            self._last = due
        if twice < figures.duplicate:
            self.duplicated += 1
            return (due, due)
        return (due,)

    def _serialised(self, now: float, size: int) -> float:
        """When the packet's last bit is on the wire; 0 where the queue has no room for it.
        An empty queue has room for one packet, however small it is."""
        figures = self._figures
        per_byte = 8 / figures.bandwidth_bit_per_s
        waits = self._free - now
        takes = (size + HEADERS_BYTES) * per_byte
        if waits > 0:
            bytes_ = figures.queue_bytes
            room = bytes_ * per_byte if bytes_ else figures.queue_ms / 1000
            if waits + takes > room + _ROUNDING_S:
                return 0.0
        self._free = max(self._free, now) + takes
        return self._free
