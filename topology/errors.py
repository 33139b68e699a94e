"""Errors of the topology package, grouped by cause."""

from __future__ import annotations

from runtime.errors import TradewindError


class UnknownName(TradewindError):
    """A resource was asked for by a name that the snapshot does not hold."""
