"""Counting queries by type and rcode at the price of one list increment."""

from __future__ import annotations

from collections.abc import Iterator

import dns.rdatatype

from control_plane.geodns import packet

_RCODES = {
    packet.NOERROR: "NOERROR",
    packet.FORMERR: "FORMERR",
    packet.SERVFAIL: "SERVFAIL",
    packet.NXDOMAIN: "NXDOMAIN",
    packet.NOTIMP: "NOTIMP",
    packet.REFUSED: "REFUSED",
    packet.BADVERS: "BADVERS",
}
_NAMED = {int(t): dns.rdatatype.to_text(t) for t in dns.rdatatype.RdataType if int(t)}

_OTHER = -1


class Tally:
    """Counters by (type, rcode). `counts[slot(...)] += 1` is all that a query costs."""

    __slots__ = ("_labels", "_slots", "counts")

    def __init__(self) -> None:
        self.counts: list[int] = []
        self._labels: list[tuple[str, str]] = []
        self._slots: dict[tuple[int | None, int], int] = {}

    def slot(self, rrtype: int | None, rcode: int) -> int:
        """The index of a counter. Types without a name share one, so that the table is bounded."""
        key = (rrtype if rrtype in _NAMED or rrtype is None else _OTHER, rcode)
        index = self._slots.get(key)
        if index is None:
            index = self._slots[key] = len(self.counts)
            self.counts.append(0)
            kind = "none" if rrtype is None else _NAMED.get(rrtype, "other")
            self._labels.append((kind, _RCODES[rcode]))
        return index

    def __iter__(self) -> Iterator[tuple[str, str, int]]:
        """(type, rcode, count) of everything that was counted."""
        for (kind, rcode), count in zip(self._labels, self.counts, strict=True):
            yield kind, rcode, count
