"""One answer while it grows: token by token to text, to its end. Pure."""

from __future__ import annotations

from msgspec import Struct

from region_core.engine.base import FinishReason, Tokenizer
from region_core.prepare import Prepared


class Piece(Struct, frozen=True, gc=False):
    """What one step adds. `ids` is empty when the token only ended the answer."""

    position: int
    ids: tuple[int, ...]
    text: str
    finish: FinishReason | None

    @property
    def empty(self) -> bool:
        return not self.ids and not self.text


class Answer:
    """The tokens of one answer, counted. The token that ends a turn is no part of it."""

    __slots__ = ("_detokeniser", "_ends", "_max", "completion_tokens", "prompt_tokens")

    def __init__(self, prepared: Prepared, tokenizer: Tokenizer) -> None:
        self.prompt_tokens = len(prepared.prompt)
        self.completion_tokens = len(prepared.answer)
        self._detokeniser = prepared.detokeniser
        self._ends = tokenizer.end_ids
        self._max = prepared.max_tokens

    def take(self, token: int) -> Piece:
        """The answer's next token, as sampled."""
        position = self.completion_tokens
        if token in self._ends:
            return Piece(position, (), self._detokeniser.finish(), "stop")
        self.completion_tokens += 1
        text = self._detokeniser.feed(token)
        finish: FinishReason | None = None
        if self._detokeniser.stopped:
            finish = "stop"
        elif self.completion_tokens >= self._max:
            text += self._detokeniser.finish()
            finish = "length"
        return Piece(position, (token,), text, finish)

    def close(self, reason: FinishReason) -> Piece:
        """Nothing more is sampled: what was held back comes out."""
        return Piece(self.completion_tokens, (), self._detokeniser.finish(), reason)
