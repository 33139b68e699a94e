"""Errors of geo-DNS, grouped by cause."""

from __future__ import annotations

from runtime.errors import TradewindError


class InvalidZone(TradewindError):
    """A zone holds something that cannot be written as DNS: fix the Zone resource."""


class PlacesUnreadable(TradewindError):
    """The file that says where addresses are is missing or damaged: fix the settings or it."""


class CannotListen(TradewindError):
    """An address could not be bound."""
