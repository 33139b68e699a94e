"""`sim`: an engine without a model, for labs, tests and benchmarks of everything around it.

It answers with text made up from the prompt, the seed and nothing else, so that an answer can
be cached, compared and continued in another region like a real one. Its service times imitate
an engine's: so many input tokens a second, and a step that grows with the batch. With
`instant` it takes no time and has no thread: the whole answer comes at once.

It says that it is `sim` wherever an engine is named. A token is up to three bytes of UTF-8, so
characters do span tokens.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from region_core.engine.base import Begin, Description, Limits, Sampling, Tokenizer
from region_core.engine.draw import uniform
from region_core.scheduling.plan import Step
from topology.wire.chat import Message

END = 0
VOCABULARY = 4 << 24
_TOKEN_BYTES = 3
_ANSWERS = 256
_HANG_S = 0.02  # how soon it notices that it may go on
_WORDS = tuple(
    "the a one ship wind sail port star coast wave gull map rope tide lamp "  # noqa: SIM905
    "calm swift north south east west steady früh día 海 🌊 ⛵ and then again "
    "leaves finds turns holds meets carries follows answers crosses waits.".split()
)


class SimSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What the imitated engine is like. The defaults resemble SmolLM2-135M on two CPU cores."""

    instant: bool = False  # no service time at all; answers come whole
    prefill_tokens_per_s: Annotated[float, Meta(gt=0)] = 2000.0
    step_ms: Annotated[float, Meta(ge=0)] = 13.0  # of a step with one sequence
    step_ms_per_sequence: Annotated[float, Meta(ge=0)] = 0.7  # for each further sequence
    answer_tokens_min: Annotated[int, Meta(ge=1)] = 24  # of answers that end by themselves;
    answer_tokens_max: Annotated[int, Meta(ge=1, le=4096)] = 96  # they end with a whole word
    hang_while: Path | None = None  # while this file exists, no step ends: an engine half dead


class SimTokenizer:
    """Tokens are runs of up to three bytes: `length << 24 | bytes`, and 0 is the end."""

    end_ids: frozenset[int] = frozenset({END})
    longest_token_bytes: int = _TOKEN_BYTES
    vocabulary: int = VOCABULARY

    def encode_chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return _pieces(conversation(messages))

    def encode(self, text: str) -> tuple[int, ...]:
        return _pieces(text.encode())

    def token_bytes(self, token: int) -> bytes:
        return (token & 0xFFFFFF).to_bytes(_TOKEN_BYTES, "little")[: token >> 24]


class SimEngine:
    """`Engine` without a model."""

    def __init__(self, settings: SimSettings, limits: Limits, model: str) -> None:
        self.limits = limits
        self.description = Description("sim", f"{model} (simulated, not a model)", "none", "none")
        self.tokenizer: Tokenizer = SimTokenizer()
        self._settings = settings
        self._answers = tuple(self._compose(number) for number in range(_ANSWERS))
        self._texts = {ids: self._text(ids) for ids in self._answers}
        self._slots: dict[int, tuple[tuple[int, ...], int]] = {}  # the answer, and how far it is
        self._never = threading.Event()

    @property
    def instant(self) -> bool:
        return self._settings.instant

    def answer(self, prompt: bytes, sampling: Sampling) -> tuple[int, ...]:
        """The whole answer to a prompt, without the end token."""
        number = zlib.crc32(prompt)
        if sampling.temperature > 0:
            number ^= int(uniform(sampling.seed, 0) * _ANSWERS)
        return self._answers[number % _ANSWERS]

    def whole(self, prompt: bytes, sampling: Sampling) -> tuple[tuple[int, ...], str]:
        """`answer`, and its text."""
        ids = self.answer(prompt, sampling)
        return ids, self._texts[ids]

    def begin(self, sequence: Begin) -> None:
        prompt = b"".join(map(self.tokenizer.token_bytes, sequence.prompt))
        self._slots[sequence.slot] = (
            self.answer(prompt, sequence.sampling),
            len(sequence.answer),
        )

    def step(self, step: Step) -> Mapping[int, int]:
        self._never.wait(self._service_s(step))
        while self._hangs:
            self._never.wait(_HANG_S)
        tokens = {}
        for slot in (*step.decodes, *(chunk.slot for chunk in step.chunks if chunk.last)):
            answer, index = self._slots[slot]
            tokens[slot] = answer[index] if index < len(answer) else END
            self._slots[slot] = (answer, index + 1)
        return tokens

    def release(self, slot: int) -> None:
        self._slots.pop(slot, None)

    def close(self) -> None:
        self._slots.clear()

    @property
    def _hangs(self) -> bool:
        hang = self._settings.hang_while
        return hang is not None and hang.exists()

    def _service_s(self, step: Step) -> float:
        settings = self._settings
        if settings.instant:
            return 0.0
        taken = sum(chunk.count for chunk in step.chunks)
        decoding = len(step.decodes)
        ms = settings.step_ms + settings.step_ms_per_sequence * max(0, decoding - 1)
        return taken / settings.prefill_tokens_per_s + (ms / 1000 if decoding else 0.0)

    def _text(self, ids: tuple[int, ...]) -> str:
        return b"".join(map(self.tokenizer.token_bytes, ids)).decode()

    def _compose(self, number: int) -> tuple[int, ...]:
        low, high = self._settings.answer_tokens_min, self._settings.answer_tokens_max
        count = low + int(uniform(number, 0) * (max(low, high) - low + 1))
        text, index = "sim:", 1
        while len(text.encode()) < _TOKEN_BYTES * count:
            text += " " + _WORDS[int(uniform(number, index) * len(_WORDS))]
            index += 1
        return _pieces(text.encode())


def conversation(messages: Sequence[Message]) -> bytes:
    """What stands for the prompt."""
    return "".join(f"{m.role}: {m.content}\n" for m in messages).encode()


def pieces(data: bytes) -> int:
    """How many tokens `data` makes."""
    return -(-len(data) // _TOKEN_BYTES)


def _pieces(data: bytes) -> tuple[int, ...]:
    cut = [data[i : i + _TOKEN_BYTES] for i in range(0, len(data), _TOKEN_BYTES)]
    return tuple(len(piece) << 24 | int.from_bytes(piece, "little") for piece in cut)
