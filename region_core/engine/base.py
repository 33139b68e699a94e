"""What an engine is, and what a request to it and its answer look like.

An engine owns slots. A sequence is begun in a slot, steps take its input in and decode it, one
token a step, and the slot is released. The engine never decides who runs: `scheduling` does.
One conformance suite (tests/region_core/test_engine_conformance.py) runs over every engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from msgspec import Struct

from region_core.scheduling.plan import Step
from topology.wire.chat import Message

FinishReason = Literal["stop", "length"]


class Sampling(Struct, frozen=True):
    """How the next token is chosen.

    The choice depends on (logits, seed, index of the token in the answer) alone, so that an
    answer can be continued elsewhere. `temperature` 0 takes the likeliest token.
    """

    temperature: float = 1.0  # 0 to 2
    top_p: float = 1.0  # above 0, at most 1
    seed: int = 0  # any 64-bit integer


class Begin(Struct, frozen=True):
    """A sequence that begins in `slot`.

    `answer` holds the tokens of the answer that exist already: they are input like the
    prompt, and the first token sampled has the index `len(answer)`.
    """

    slot: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    sampling: Sampling


class Limits(Struct, frozen=True):
    """What an engine can hold."""

    slots: int  # sequences at once
    context_tokens: int  # prompt and answer of one sequence


class Description(Struct, frozen=True):
    """What an engine is, for logs, /v1/models and people."""

    engine: str  # "torch", "sim"
    model: str  # what runs, e.g. the title in the file of weights
    device: str
    dtype: str


class Tokenizer(Protocol):
    """Text in, tokens out, and bytes back. Thread-safe."""

    end_ids: frozenset[int]
    vocabulary: int  # tokens are below it
    longest_token_bytes: int  # text of n bytes has n / this many tokens, or more

    def encode_chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The prompt of a conversation, through the model's chat template.

        What a message says is text alone: it cannot smuggle in special tokens. Raises
        `Refused` when the template refuses the conversation.
        """
        ...

    def encode(self, text: str) -> tuple[int, ...]:
        """Plain text to tokens; special tokens in it are read as such."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to the answer: UTF-8, perhaps a part of a character only."""
        ...


class Engine(Protocol):
    """Runs sequences. Everything but `tokenizer` belongs to one thread at a time."""

    limits: Limits
    description: Description
    tokenizer: Tokenizer

    def begin(self, sequence: Begin) -> None:
        """Give a free slot to a sequence. Computes nothing yet."""
        ...

    def step(self, step: Step) -> Mapping[int, int]:
        """Run a step: slot -> the token sampled, for each decode and each last chunk.

        Raises `EngineFault` when the step failed; its sequences are lost then.
        """
        ...

    def release(self, slot: int) -> None:
        """Forget the sequence in a slot, whole or not. A free slot may be released again."""
        ...

    def close(self) -> None:
        """Give everything back. The engine is of no use after that."""
        ...
