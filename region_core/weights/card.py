"""What a model is, apart from its numbers: shapes, special tokens, chat template."""

from __future__ import annotations

from msgspec import Struct


class ModelCard(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The shape of a Llama-type model, as its file's metadata gives it.

    Queries and keys are in the file's own order, in which RoPE turns neighbouring pairs
    (llama.cpp's order, not that of transformers).
    """

    source_sha256: str
    title: str
    layers: int
    width: int  # of the residual stream
    heads: int
    kv_heads: int
    head_width: int
    hidden_width: int  # of the feed-forward block
    vocabulary: int
    context_tokens: int  # that the model was trained for
    rope_base: float
    norm_epsilon: float
    end_ids: tuple[int, ...]  # any of them ends an answer
    special_ids: tuple[int, ...]  # never part of an answer's text
    chat_template: str  # Jinja
