"""What an edge model is, and which there are. See docs/ladder.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from msgspec import Struct

from topology.wire.chat import ChatRequest


class EdgeAnswer(Struct, frozen=True):
    """A whole answer of an edge model. Counts are of its own tokens."""

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


class EdgeModel(Protocol):
    """Answers requests at the edge. `name` is what replies say in their field `model`.

    It must not block the event loop, and keep nothing of one request for another.
    """

    @property
    def name(self) -> str: ...

    async def answer(self, request: ChatRequest, left_s: float) -> EdgeAnswer | None:
        """The answer, within `left_s`; None: it declines, and the next step of the ladder is
        taken. May be cancelled while it works."""
        ...


class EdgeModels:
    """Model that was asked for -> the edge model that may answer in its place."""

    def __init__(self, models: Mapping[str, EdgeModel] | None = None) -> None:
        self._models = dict(models or {})

    def __len__(self) -> int:
        return len(self._models)

    def add(self, model: str, by: EdgeModel) -> None:
        """Let `by` answer in place of `model`."""
        self._models[model] = by

    def find(self, model: str) -> EdgeModel | None:
        return self._models.get(model)
