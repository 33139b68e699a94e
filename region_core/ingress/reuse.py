"""Whether an HTTP client will have an answer that is there already (RFC 9111, 5.2.1)."""

from __future__ import annotations

_REFUSALS = frozenset(("no-store", "no-cache", "max-age=0"))


def reuse_of(cache_control: str | None) -> bool:
    """For `Job.reuse`, from the header."""
    if cache_control is None:
        return True
    return _REFUSALS.isdisjoint(part.strip().lower() for part in cache_control.split(","))
