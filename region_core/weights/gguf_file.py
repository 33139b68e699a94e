"""Read a Llama-type model out of a GGUF file: its card, its tokenizer, its tensors.

GGUF stores matrices quantised in blocks; `gguf` turns them back into float32. Rows of queries
and keys keep the file's order (see `ModelCard`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from region_core.errors import WeightsUnsupported
from region_core.weights.card import ModelCard
from region_core.weights.tokenizer_file import BytePairs

Matrix = NDArray[np.float32]

_CONTROL = 3  # llama.cpp's token type for special tokens
_UNUSED_END = "<|endoftext|>"


class GgufFile:
    """An open GGUF file. Everything it says is checked before it is believed."""

    def __init__(self, path: Path, sha256: str) -> None:
        import gguf

        self._dequantise = gguf.quants.dequantize
        self._path = path
        self._sha256 = sha256
        try:
            self._reader: Any = gguf.GGUFReader(str(path))
        except (ValueError, OSError) as error:
            raise WeightsUnsupported(f"{path} is not a GGUF file: {error}") from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        if self._field("general.architecture") != "llama":
            raise WeightsUnsupported(
                f"{path} holds a {self._field('general.architecture')!r} model",
                hint="the torch engine runs the Llama architecture",
            )

    def _field(self, name: str, default: Any = None) -> Any:
        field = self._reader.fields.get(name)
        if field is not None:
            return field.contents()
        if default is None:
            raise WeightsUnsupported(f"{self._path} says nothing about {name}")
        return default

    def card(self) -> ModelCard:
        heads = int(self._field("llama.attention.head_count"))
        width = int(self._field("llama.embedding_length"))
        tokens = self.byte_pairs()
        ends = {int(self._field("tokenizer.ggml.eos_token_id"))}
        if _UNUSED_END in tokens.tokens:
            ends.add(tokens.tokens.index(_UNUSED_END))
        return ModelCard(
            source_sha256=self._sha256,
            title=str(self._field("general.name", self._path.stem)),
            layers=int(self._field("llama.block_count")),
            width=width,
            heads=heads,
            kv_heads=int(self._field("llama.attention.head_count_kv", heads)),
            head_width=int(self._field("llama.rope.dimension_count", width // heads)),
            hidden_width=int(self._field("llama.feed_forward_length")),
            vocabulary=len(tokens.tokens),
            context_tokens=int(self._field("llama.context_length")),
            rope_base=float(self._field("llama.rope.freq_base", 10000.0)),
            norm_epsilon=float(self._field("llama.attention.layer_norm_rms_epsilon")),
            end_ids=tuple(sorted(ends)),
            special_ids=tokens.special_ids,
            chat_template=str(self._field("tokenizer.chat_template")),
        )

    def byte_pairs(self) -> BytePairs:
        kind, pre = self._field("tokenizer.ggml.model"), self._field("tokenizer.ggml.pre")
        if kind != "gpt2" or pre != "smollm":
            raise WeightsUnsupported(
                f"{self._path} uses the tokenizer {kind!r} with the pre-tokenizer {pre!r}",
                hint="byte-level BPE with the pre-tokenizer 'smollm' is what we can read",
            )
        types = self._field("tokenizer.ggml.token_type")
        return BytePairs(
            tokens=tuple(self._field("tokenizer.ggml.tokens")),
            merges=tuple(self._field("tokenizer.ggml.merges")),
            special_ids=tuple(i for i, type_ in enumerate(types) if type_ == _CONTROL),
        )

    def matrix(self, name: str) -> Matrix:
        """A tensor in float32, rows first: `[out, in]` for a linear layer."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise WeightsUnsupported(f"{self._path} has no tensor {name}")
        return np.asarray(self._dequantise(tensor.data, tensor.tensor_type), dtype=np.float32)

    def matrices(self, card: ModelCard) -> Iterator[tuple[str, Matrix]]:
        """The tensors as the engine wants them: projections that share an input are fused."""
        if "output.weight" in self._tensors:
            yield "head", self.matrix("output.weight")
        yield "embedding", self.matrix("token_embd.weight")
        yield "norm", self.matrix("output_norm.weight")
        for layer in range(card.layers):
            of, to = f"blk.{layer}.", f"layers.{layer}."
            yield to + "attention_norm", self.matrix(of + "attn_norm.weight")
            qkv = [self.matrix(f"{of}attn_{part}.weight") for part in "qkv"]
            yield to + "qkv", np.concatenate(qkv)
            yield to + "output", _rows_first(self.matrix(of + "attn_output.weight"), card)
            yield to + "hidden_norm", self.matrix(of + "ffn_norm.weight")
            pair = [self.matrix(f"{of}ffn_{part}.weight") for part in ("gate", "up")]
            yield to + "gate_up", np.concatenate(pair)
            yield to + "down", self.matrix(of + "ffn_down.weight")


def _rows_first(output: Matrix, card: ModelCard) -> Matrix:
    """Reorder the input of the attention's output projection.

    The file's order is (kv head, query head of its group, width). Our attention treats the
    query heads of a group as rows and gets them back as (query head of the group, kv head,
    width); reordering the columns once here saves a copy per layer and step.
    """
    group = card.heads // card.kv_heads
    split = output.reshape(-1, card.kv_heads, group, card.head_width)
    return np.ascontiguousarray(split.transpose(0, 2, 1, 3)).reshape(output.shape)
