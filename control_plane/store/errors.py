"""Errors of the store, grouped by cause."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.errors import TradewindError


class InvalidRequest(TradewindError):
    """A call that no store can carry out: a bad key, or a transaction beyond the limits.

    Nothing was sent. `problems` lists every mistake.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        self.problems = problems
        super().__init__("the store cannot do that: " + "; ".join(problems))


class Conflict(TradewindError):
    """A guard did not hold, so nothing of the transaction was applied.

    `found` gives, for each key that did not match, the revision it is at now (0: it does not
    exist). Read again, decide again, try again: the same transaction cannot succeed.
    """

    def __init__(self, found: Mapping[str, int], expected: Mapping[str, int]) -> None:
        self.found = dict(found)
        self.keys = tuple(sorted(found))
        changes = (f"{key} {_moved(expected[key], found[key])}" for key in self.keys)
        super().__init__(
            f"changed meanwhile: {'; '.join(changes)}",
            hint="read the latest version, apply your change to it, and try again",
        )


class LeaseLost(TradewindError):
    """The lease has ended, and its keys are gone. Ask for another, and look what changed."""

    def __init__(self, lease: int) -> None:
        self.lease = lease
        super().__init__(f"lease {lease:x} has ended", hint="take a new lease and register again")


class StoreUnavailable(TradewindError):
    """The store gave no answer, or none that can be used, within the time allowed.

    `ambiguous` is true when a transaction had been sent and its outcome is unknown: it may have
    been applied, or may yet be. Read the keys before trying again. When it is false, nothing was
    applied.
    """

    retryable = True

    def __init__(self, message: str, *, hint: str = "", ambiguous: bool = False) -> None:
        self.ambiguous = ambiguous
        if ambiguous:
            message = f"{message}; the outcome is unknown: the change may have been applied"
            hint = hint or "read the keys to see whether it was, before trying again"
        super().__init__(message, hint=hint)


class StoreRefused(StoreUnavailable):
    """The store answers, and refuses: permissions, a full disk, a wrong user.

    Somebody has to change something first, in the settings or at the store.
    """

    retryable = False


class StoreClosed(StoreUnavailable):
    """The store was closed, by this process, before or during the call."""

    retryable = False


def _moved(expected: int, found: int) -> str:
    if not found:
        return f"does not exist (revision {expected} was expected)"
    if not expected:
        return f"exists already (at revision {found})"
    return f"is at revision {found}, not {expected}"
