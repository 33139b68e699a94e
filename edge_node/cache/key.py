"""What an answer depends on."""

from __future__ import annotations

from typing import TypeAlias

# Tenant, model, epoch of the model (`Serving.epoch`), digest of what was asked. Nobody but the
# tenant is ever given what is kept under it.
AnswerKey: TypeAlias = tuple[str, str, bytes, bytes]
