"""The root of Tradewind's errors. Each package adds its own, grouped by cause, in `errors.py`."""

from __future__ import annotations


class TradewindError(Exception):
    """Something a person or a caller must be told.

    `message` says what was wrong and where, `hint` what to do about it. `retryable` says
    whether the same call may succeed later without anybody changing anything.
    """

    retryable: bool = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message
