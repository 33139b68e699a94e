"""A Llama-type model in torch: one forward pass over rows of any mixture of sequences.

A row is one token of one sequence. Everything but attention treats rows alike, so input being
taken in and sequences being decoded share the matrix products of one pass (Llama: Touvron et
al. 2023; RoPE: Su et al. 2021; grouped queries: Ainslie et al. 2023).

Numbers: weights and the inputs of matrix products are in the weights' dtype (of int8 weights:
quantised.py); the residual stream, norms and RoPE are in float32. Each row's bits do not depend on
the other rows; what that takes is said where it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from region_core.engine.attention_plan import PAD_TOKENS, Block, Run
from region_core.engine.kv_cache import KeyValueCache
from region_core.engine.products import Matrix, Product, can_pack, product
from region_core.engine.quantised import Quantised, can_pack_int8
from region_core.weights.bundle import SCALES
from region_core.weights.card import ModelCard

# attention norm, query-key-value, output, hidden norm, gate and up, down
Layer = tuple[Tensor, Product, Product, Tensor, Product, Product]


class Rows:
    """What a pass computes: tokens, their positions, their places in the cache, the attention.

    Tensors are on the model's device; `ids`, `positions`, `places` are int64 `[rows]`.
    """

    __slots__ = ("blocks", "ids", "places", "positions", "runs")

    def __init__(
        self,
        ids: Tensor,
        positions: Tensor,
        places: Tensor,
        runs: Sequence[Run],
        blocks: Sequence[Block],
    ) -> None:
        self.ids = ids
        self.positions = positions
        self.places = places
        self.runs = runs
        self.blocks = blocks


class Llama:
    """The weights, from a bundle's file, and the pass over them.

    The file is mapped into memory. `pack` asks for a packed copy of the matrices where the
    device has use for one (products.py); without, cores of a machine share the file's pages.
    """

    def __init__(
        self, weights: Path, card: ModelCard, context: int, device: torch.device, pack: bool
    ) -> None:
        self.card = card
        self.device = device
        self.embedding, self.head = _ends(weights, device)
        embedding = self.embedding
        quantised = self.quantised = isinstance(embedding, Quantised)
        self.dtype = torch.bfloat16 if isinstance(embedding, Quantised) else embedding.dtype
        self._inputs = torch.float32 if quantised else self.dtype  # of products
        able = can_pack_int8(device) if quantised else can_pack(device, self.dtype)
        self.packed = pack and able
        # A map of its own, so that the pages read for packing go when the layers are done.
        with safe_open(str(weights), framework="pt", device=str(device)) as file:
            self._norm = file.get_tensor("norm").clone()
            self._layers = [self._layer(file, f"layers.{n}.") for n in range(card.layers)]
        self._head = product(self.head, self.packed)
        if self.packed:
            self.embedding, self.head = _ends(weights, device)
        self._turns = _turns(card, context).to(device)
        self._lone_row = device.type == "cpu" and not quantised

    def _layer(self, file: Any, name: str) -> Layer:
        def held(part: str) -> Product:
            return product(_matrix(file, name + part), self.packed)

        return (
            file.get_tensor(name + "attention_norm").clone(),
            held("qkv"),
            held("output"),
            file.get_tensor(name + "hidden_norm").clone(),
            held("gate_up"),
            held("down"),
        )

    def watch(self, saw: Callable[[str, Tensor], None]) -> None:
        """From now on call `saw` with what each norm of a layer gives, and the norm's name."""

        def watched(name: str, then: Product) -> Product:
            def product_of(x: Tensor) -> Tensor:
                saw(name, x)
                return then(x)

            return product_of

        for index, (norm1, qkv, output, norm2, gate_up, down) in enumerate(self._layers):
            name = f"layers.{index}."
            first = watched(name + "attention_norm", qkv)
            second = watched(name + "hidden_norm", gate_up)
            self._layers[index] = (norm1, first, output, norm2, second, down)

    def hidden(self, rows: Rows, cache: KeyValueCache, wanted: Tensor) -> Tensor:
        """Run the pass; returns the last hidden state `[len(wanted), width]` of those rows.

        Keys and values of every row are left in the cache.
        """
        card, eps = self.card, self.card.norm_epsilon
        x = _rows_of(self.embedding, rows.ids)
        count = len(x)
        turns = self._turns_of(rows.positions)
        split = card.heads * card.head_width
        attend = Attention(rows, cache, card, self.dtype, self.device)
        shape = (card.width,)
        for index, (norm1, qkv, output, norm2, gate_up, down) in enumerate(self._layers):
            h = functional.rms_norm(x, shape, norm1, eps).to(self._inputs)
            wide = qkv(h).float()
            torch.view_as_complex(wide.view(count, -1, card.head_width // 2, 2)).mul_(turns)
            turned = wide.to(self.dtype)
            cache.store(index, rows.places, turned[:, split:])
            x += output(attend(index, turned[:, :split]))
            h = functional.rms_norm(x, shape, norm2, eps).to(self._inputs)
            both = gate_up(h)
            half = card.hidden_width
            x += self._down(functional.silu(both[:, :half]).mul_(both[:, half:]), down)
        return functional.rms_norm(x[wanted], shape, self._norm, eps).to(self._inputs)

    def logits(self, hidden: Tensor) -> Tensor:
        """`[rows, vocabulary]` in the weights' dtype; float32 where that is int8."""
        return self._head(hidden)

    def _down(self, h: Tensor, down: Product) -> Tensor:
        # oneDNN multiplies a lone row by a code path of its own, which rounds differently when
        # rows are long. Doubling that row costs nothing: the weights are what is read.
        if self._lone_row and len(h) == 1:
            return down(h.expand(2, -1))[:1]
        return down(h)

    def _turns_of(self, positions: Tensor) -> Tensor:
        """RoPE's rotations per row and head: values are "turned" too, by nothing.

        Turning the fused projection whole is one multiplication instead of three slices.
        """
        card = self.card
        turned = card.heads + card.kv_heads
        turns = self._turns[positions]
        out = turns.new_ones(len(turns), turned + card.kv_heads, card.head_width // 2)
        out[:, :turned] = turns[:, None]
        return out


class Attention:
    """Attention of one pass, layer by layer.

    The query heads of a group are treated as rows of their key-value head's query, which needs
    no repeated keys and is 5 to 8 times as fast as `enable_gqa` on a CPU.
    """

    def __init__(
        self,
        rows: Rows,
        cache: KeyValueCache,
        card: ModelCard,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._cache = cache
        self._kv_heads, self._width = card.kv_heads, card.head_width
        self._group = card.heads // card.kv_heads
        steps = torch.arange(cache.stripe, device=device)
        self._runs = [
            (run, _mask(rows.positions[run.start : run.stop], steps[: run.length], dtype))
            for run in rows.runs
        ]
        self._blocks = [
            (block, _mask(rows.positions[block.start : block.stop], steps[: block.length], dtype))
            for block in rows.blocks
        ]
        self._count = len(rows.ids)

    def __call__(self, layer: int, queries: Tensor) -> Tensor:
        """`[rows, heads * width]` -> the same shape, heads in the order `output` expects."""
        q = queries.view(self._count, self._kv_heads, self._group, self._width)
        parts = [self._decoded(layer, q, run, mask) for run, mask in self._runs]
        parts += [self._taken_in(layer, q, block, mask) for block, mask in self._blocks]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decoded(self, layer: int, q: Tensor, run: Run, mask: Tensor) -> Tensor:
        keys, values = self._cache.stripes(layer, run.slot, run.stop - run.start, run.length)
        return self._rows(q[run.start : run.stop], keys, values, mask)

    def _taken_in(self, layer: int, q: Tensor, block: Block, mask: Tensor) -> Tensor:
        count = block.stop - block.start
        q = q[block.start : block.stop]
        keys, values = self._cache.stripes(layer, block.slot, 1, block.length)
        if block.replay:
            keys, values = keys.expand(count, -1, -1, -1), values.expand(count, -1, -1, -1)
            return self._rows(q, keys, values, mask)
        if lacking := -count % PAD_TOKENS:
            q = torch.cat((q, q[-1:].expand(lacking, -1, -1, -1)))
            mask = torch.cat((mask, mask[-1:].expand(lacking, -1, -1, -1)))
        size = len(q)
        wide = q.permute(1, 2, 0, 3).reshape(1, self._kv_heads, self._group * size, self._width)
        tall = mask.view(1, 1, 1, size, -1).expand(1, 1, self._group, size, -1)
        out = functional.scaled_dot_product_attention(
            wide, keys, values, attn_mask=tall.reshape(1, 1, self._group * size, -1)
        )
        out = out.view(self._kv_heads, self._group, size, self._width)
        return out.permute(2, 1, 0, 3)[:count].reshape(count, -1)

    def _rows(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        out = functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return out.transpose(1, 2).reshape(len(q), -1)


def _ends(weights: Path, device: torch.device) -> tuple[Matrix, Matrix]:
    """The embedding and the head, which are one matrix in models that tie them."""
    with safe_open(str(weights), framework="pt", device=str(device)) as file:
        embedding = _matrix(file, "embedding")
        return embedding, _matrix(file, "head") if "head" in file.keys() else embedding  # noqa: SIM118


def _matrix(file: Any, name: str) -> Matrix:
    numbers: Tensor = file.get_tensor(name)
    if numbers.dtype != torch.int8:
        return numbers
    return Quantised(numbers, file.get_tensor(name + SCALES).clone())


def _rows_of(matrix: Matrix, ids: Tensor) -> Tensor:
    """In float32."""
    return matrix.rows(ids) if isinstance(matrix, Quantised) else matrix[ids].float()


def _mask(positions: Tensor, steps: Tensor, dtype: torch.dtype) -> Tensor:
    """`[rows, 1, 1, length]`: 0 where a row may look, minus infinity after its own position."""
    hidden = steps[None] > positions[:, None]
    mask = torch.zeros(hidden.shape, dtype=dtype, device=steps.device)
    return mask.masked_fill_(hidden, float("-inf"))[:, None, None]


def _turns(card: ModelCard, context: int) -> Tensor:
    """RoPE: `[context, head_width / 2]` complex64, the rotation of each pair at each position."""
    exponents = torch.arange(0, card.head_width, 2, dtype=torch.float64) / card.head_width
    angles = torch.outer(torch.arange(context, dtype=torch.float64), card.rope_base**-exponents)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
