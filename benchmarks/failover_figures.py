"""What the failover benchmark works out of what clients saw. Pure.

Three readings of one stream that a fault hit, all by the client's clock:

- *gap*: from the fault to the first byte that another way delivered. Where it is known at which
  token another way went on, that is the first piece that reaches beyond this token. Where it is
  not, it is the first piece after the longest silence since the fault. Both count what the old
  way still had under way as the old way's.
- *silence*: the longest time without a byte that a client had to sit through.
- *wrong*: whether text, finish reason or usage differ from those of an undisturbed run.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

SLACK_S = 0.03  # a piece up to this long before the fault may be the last one


@dataclass
class Told:
    """What a client was told. `pieces`: (when, how many bytes of text there were then)."""

    text: str = ""
    finish_reason: str = ""
    usage: dict[str, Any] | None = None
    done: bool = False
    error: str = ""
    pieces: list[tuple[float, int]] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """It ended as an answer does."""
        return self.done and bool(self.finish_reason) and not self.error


def told(reads: Sequence[tuple[float, bytes]], *, chunked: bool) -> Told:
    """Read server-sent events from what came when."""
    found, size = Told(), 0
    for at, event in _events(_dechunked(reads) if chunked else reads):
        if event == "[DONE]":
            found.done = True
            continue
        chunk = json.loads(event)
        if "error" in chunk:
            found.error = str(chunk["error"].get("message", chunk["error"]))
            continue
        if chunk.get("usage"):
            found.usage = chunk["usage"]
        for choice in chunk.get("choices", ()):
            text = choice["delta"].get("content") or ""
            found.text += text
            size += len(text.encode())
            found.finish_reason = choice.get("finish_reason") or found.finish_reason
            if text:
                found.pieces.append((at, size))
    return found


def _dechunked(reads: Iterable[tuple[float, bytes]]) -> Iterable[tuple[float, bytes]]:
    """Undo HTTP/1.1's chunked coding (RFC 9112, section 7.1); a cut-off end is left out."""
    rest = b""
    for at, data in reads:
        rest += data
        while (line_end := rest.find(b"\r\n")) >= 0:
            size = int(rest[:line_end].split(b";")[0], 16)
            end = line_end + 2 + size
            if len(rest) < end + 2:
                break
            if size:
                yield at, rest[line_end + 2 : end]
            rest = rest[end + 2 :]


def _events(reads: Iterable[tuple[float, bytes]]) -> Iterable[tuple[float, str]]:
    rest = b""
    for at, data in reads:
        *whole, rest = (rest + data).split(b"\n\n")
        for event in whole:
            if event.startswith(b"data: "):
                yield at, event[6:].decode()


@dataclass(frozen=True)
class Gap:
    """See above. Milliseconds."""

    gap_ms: float
    silence_ms: float


def gap_by_silence(pieces: Sequence[tuple[float, int]], fault: float, until: float) -> Gap | None:
    """From the fault to the end of the longest silence that ended between it and `until`.

    None when nothing came after the fault: then there is no such byte.
    """
    longest, end = 0.0, 0.0
    before = fault
    for at, _ in pieces:
        if at > until:
            break
        if at > fault and at - before > longest:
            longest, end = at - before, at
        before = max(at, fault - SLACK_S) if at <= fault else at
    return Gap((end - fault) * 1000, longest * 1000) if end else None


def bytes_at(pieces: Sequence[tuple[float, int]], at: float) -> int:
    """How much text the client had by then."""
    return max((size for when, size in pieces if when <= at), default=0)


def gap_by_position(
    pieces: Sequence[tuple[float, int]], fault: float, bytes_before: int
) -> float | None:
    """From the fault to the first piece that reaches beyond `bytes_before`, in ms."""
    for at, size in pieces:
        if size > bytes_before:
            return (at - fault) * 1000
    return None


def is_wrong(seen: Told, reference: Told) -> bool:
    """Whether an answer that ended well differs from an undisturbed run's."""
    return (seen.text, seen.finish_reason, seen.usage) != (
        reference.text, reference.finish_reason, reference.usage,
    )  # fmt: skip


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """p50 and the worst, and what lies between."""
    if not values:
        return {"p50": None, "p90": None, "max": None}
    ordered = sorted(values)
    p90 = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
    return {
        "p50": round(statistics.median(ordered), 1),
        "p90": round(p90, 1),
        "max": round(ordered[-1], 1),
    }
