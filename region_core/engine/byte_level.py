"""The model's own tokenizer: byte-level BPE and its chat template, from a weights bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from region_core.engine.chat_template import ChatTemplate
from region_core.weights.card import ModelCard
from region_core.weights.tokenizer_file import byte_letters
from topology.wire.chat import Message


class ByteLevelTokenizer:
    """`Tokenizer` over the `tokenizers` library.

    Bytes of tokens come from a table, not from the library: an answer is put together from
    bytes, so that a character which spans tokens comes out whole.
    """

    def __init__(self, file: Path, card: ModelCard) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.end_ids = frozenset(card.end_ids)
        special = frozenset(card.special_ids)
        letters = byte_letters()
        texts = [self._tokenizer.id_to_token(index) or "" for index in range(card.vocabulary)]
        self._bytes = [
            b"" if index in special else bytes(letters[letter] for letter in text)
            for index, text in enumerate(texts)
        ]
        self.vocabulary = card.vocabulary
        longest = max(len(texts[index].encode()) for index in special)
        self.longest_token_bytes = max(longest, *map(len, self._bytes))
        self._template = ChatTemplate(card.chat_template, [texts[index] for index in special])

    def encode_chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        ids: list[int] = []
        for piece in self._template.render(messages):
            ids += self._tokenizer.encode(piece, add_special_tokens=False).ids
        return tuple(ids)

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token]
