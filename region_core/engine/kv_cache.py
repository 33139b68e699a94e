"""Keys and values of every slot, allocated once."""

from __future__ import annotations

import torch
from torch import Tensor

from region_core.engine.attention_plan import rounded

_VIEWS = 128  # remembered at most; a step needs one per run and block

Stripes = tuple[Tensor, Tensor]


class KeyValueCache:
    """`slots` stripes of `stripe` tokens per layer: `[layer][slot, token, 2 * kv_heads, width]`.

    Size: layers * slots * stripe * 2 * kv_heads * width * bytes of a number; 23 KiB a token for
    SmolLM2-135M in bfloat16. On a CPU the operating system gives the memory out as it is first
    written, so short sequences never make a long context's stripes resident.
    """

    def __init__(
        self,
        layers: int,
        slots: int,
        context: int,
        kv_heads: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.stripe = rounded(context)
        self._kv_heads = kv_heads
        shape = (slots, self.stripe, 2 * kv_heads, width)
        self._layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self._flat = [layer.view(slots * self.stripe, -1) for layer in self._layers]
        self._views: dict[tuple[int, int, int], list[Stripes]] = {}

    def place(self, slot: int, position: int) -> int:
        """Where `store` puts a token of a slot."""
        return slot * self.stripe + position

    def store(self, layer: int, places: Tensor, pairs: Tensor) -> None:
        """Write keys and values, `[rows, 2 * kv_heads * width]`, at `places` `[rows]`."""
        self._flat[layer].index_copy_(0, places, pairs)

    def stripes(self, layer: int, slot: int, slots: int, length: int) -> Stripes:
        """Keys and values `[slots, kv_heads, length, width]` from `slot` on; views, no copies."""
        key = (slot, slots, length)
        views = self._views.get(key)
        if views is None:
            if len(self._views) >= _VIEWS:
                self._views.clear()
            views = self._views[key] = [self._view(held, *key) for held in self._layers]
        return views[layer]

    def _view(self, held: Tensor, slot: int, slots: int, length: int) -> Stripes:
        part = held[slot : slot + slots, :length].transpose(1, 2)
        return part[:, : self._kv_heads], part[:, self._kv_heads :]
