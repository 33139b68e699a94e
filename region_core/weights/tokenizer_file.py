"""Byte-level BPE as Tradewind keeps it on disk: the `tokenizers` library's JSON.

Pre-tokenizer `smollm`: every digit stands alone, then GPT-2's pattern over byte letters.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class BytePairs(Struct, frozen=True):
    """A vocabulary in GPT-2's byte letters, its merges in order, and the special tokens."""

    tokens: tuple[str, ...]
    merges: tuple[str, ...]  # "left right"
    special_ids: tuple[int, ...]


def build(pairs: BytePairs) -> Any:
    """A `tokenizers.Tokenizer` for these pairs."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    split = (merge.partition(" ") for merge in pairs.merges)
    merges = [(left, right) for left, _, right in split]
    vocabulary = {token: index for index, token in enumerate(pairs.tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(pairs.tokens[index], special=True, normalized=False)
            for index in pairs.special_ids
        ]
    )
    return tokenizer


def byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes, reversed: letter -> byte.

    Printable Latin-1 stands for itself, the other 68 bytes for the letters from U+0100 on
    (Radford et al. 2019, encoder.py).
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    letters = {chr(byte): byte for byte in own}
    letters.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return letters
