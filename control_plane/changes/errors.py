"""Errors of changes, grouped by cause. What is wrong with a document is `InvalidDocument`."""

from __future__ import annotations

from msgspec import Struct

from runtime.errors import TradewindError
from topology.resources import Key

# What each safety rule is called in `force`, and on the command line.
RESIDENCY = "residency"
LAST_REGION = "last-region"
MANY = "many"
CAPACITY = "capacity"
ROLLOUT = "rollout"  # another change is being rolled out
EMPTY_SELECTOR = "empty-selector"
RULES = (RESIDENCY, LAST_REGION, MANY, CAPACITY, ROLLOUT, EMPTY_SELECTOR)


class Refusal(Struct, frozen=True):
    """A safety rule that a change breaks, and what exactly it would do."""

    rule: str
    message: str


class ChangeRefused(TradewindError):
    """The change is well-formed and would do harm. Nothing was changed."""

    def __init__(self, refusals: tuple[Refusal, ...]) -> None:
        self.refusals = refusals
        lines = "\n".join(f"  {refusal.message}" for refusal in refusals)
        flags = " ".join(dict.fromkeys(f"--force-{refusal.rule}" for refusal in refusals))
        super().__init__(
            f"refused, nothing was changed:\n{lines}", hint=f"if that is meant: {flags}"
        )


class ChangeConflict(TradewindError):
    """Somebody else changed what this change is about. Nothing was changed."""

    def __init__(self, keys: tuple[Key, ...], lines: tuple[str, ...]) -> None:
        self.keys = keys
        told = "\n".join(f"  {line}" for line in lines)
        super().__init__(
            f"conflict, nothing was changed:\n{told}",
            hint="look with `tradewind get` or `tradewind diff`, then apply again",
        )


class UnknownResource(TradewindError):
    """What was to be removed is not there."""


class UnknownRevision(TradewindError):
    """No change was made at that revision, or none that is still kept."""


class HistoryDamaged(TradewindError):
    """An entry of the history is missing, or is not what a change writes."""

    def __init__(self, number: int, found: str) -> None:
        self.number = number
        super().__init__(
            f"the history of change {number} cannot be used: {found}",
            hint="`tradewind audit verify` says what else was altered",
        )
