"""Keys and values of every slot, allocated once."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

from region_core.engine.attention_plan import BLOCK_TOKENS, rounded

_KEPT_TOKENS = 512  # of a slot that stay resident when its sequence has gone
_VIEWS = 128  # remembered at most; a step needs one per run and block

Stripes = tuple[Tensor, Tensor]


class KeyValueCache:
    """`slots` stripes of `stripe` tokens per layer: `[layer][slot, token, 2 * kv_heads, width]`.

    Size: layers * slots * stripe * 2 * kv_heads * width * bytes of a number; 23 KiB a token for
    SmolLM2-135M in bfloat16. On a CPU the operating system gives the memory out as it is first
    written, and what a long sequence took beyond `_KEPT_TOKENS` goes back when it ends: resident
    is what sequences need, not what they might.
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
        self.stripe = rounded(context, BLOCK_TOKENS)
        self._kv_heads = kv_heads
        shape = (slots, self.stripe, 2 * kv_heads, width)
        self._token_bytes = 2 * kv_heads * width * dtype.itemsize
        self._maps: list[mmap.mmap] = []
        if device.type == "cpu":
            size = slots * self.stripe * self._token_bytes
            private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self._maps = [mmap.mmap(-1, size, private) for _ in range(layers)]
            flat = (torch.frombuffer(memory, dtype=dtype) for memory in self._maps)
            self._layers = [layer.view(shape) for layer in flat]
        else:
            self._layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self._flat = [layer.view(slots * self.stripe, -1) for layer in self._layers]
        self._views: dict[tuple[int, int, int], list[Stripes]] = {}

    def place(self, slot: int, position: int) -> int:
        """Where `store` puts a token of a slot."""
        return slot * self.stripe + position

    def store(self, layer: int, places: Tensor, pairs: Tensor) -> None:
        """Write keys and values, `[rows, 2 * kv_heads * width]`, at `places` `[rows]`."""
        self._flat[layer].index_copy_(0, places, pairs)

    def forget(self, slot: int, held: int) -> None:
        """A sequence of `held` tokens has left its slot."""
        if held <= _KEPT_TOKENS or not self._maps:
            return
        page = mmap.PAGESIZE
        start = self.place(slot, _KEPT_TOKENS) * self._token_bytes
        stop = self.place(slot, held) * self._token_bytes
        start, stop = math.ceil(start / page) * page, stop // page * page
        if start < stop:
            for memory in self._maps:
                memory.madvise(mmap.MADV_DONTNEED, start, stop - start)

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
