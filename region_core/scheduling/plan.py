"""What one step of the engine is to do. Frozen, and free of tensors."""

from __future__ import annotations

from msgspec import Struct


class Chunk(Struct, frozen=True):
    """Take `count` tokens of a sequence's input, from index `start` on, into its slot.

    `last` says that the input is whole after it, so that the next token is to be sampled.
    """

    slot: int
    start: int
    count: int
    last: bool


class Step(Struct, frozen=True):
    """The work of one step: input to take in, and slots that decode one token each.

    A slot appears at most once. `decodes` is in ascending order.
    """

    chunks: tuple[Chunk, ...] = ()
    decodes: tuple[int, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.chunks and not self.decodes

    @property
    def tokens(self) -> int:
        """How many tokens pass through the model."""
        return len(self.decodes) + sum(chunk.count for chunk in self.chunks)
