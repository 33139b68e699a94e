"""Errors of the lab, grouped by cause."""

from __future__ import annotations

from runtime.errors import TradewindError


class LabError(TradewindError):
    """The lab cannot start or go on."""


class AddressBusy(LabError):
    """Something already listens where the lab wants to."""


class ProcessDied(LabError):
    """A process that the lab needs ended by itself."""
