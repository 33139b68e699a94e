"""Matrix products with weights, the fastest way that the device has.

On a CPU with bfloat16, oneDNN takes weights in blocks. Given a plain matrix it puts the blocks
together in each call, which costs as much as the product itself when there are few rows; packed
once, a step of one sequence took half the time, with the same bits in the result. The packed
copy is private to the process; the mapped file, which cores share, is then read only at start.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from region_core.engine.quantised import Quantised, integer_product, plain_product

Product = Callable[[Tensor], Tensor]
Matrix = Tensor | Quantised


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `product` can pack weights of this kind."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and hasattr(
        torch.ops.mkldnn, "_reorder_linear_weight"
    )


def product(weights: Matrix, packed: bool) -> Product:
    """`x [rows, in]` -> `x @ weights.T`, `[rows, out]`, for `weights` `[out, in]`."""
    if isinstance(weights, Quantised):
        return integer_product(weights) if packed else plain_product(weights)
    if not packed:
        return lambda x: functional.linear(x, weights)
    held = torch.ops.mkldnn._reorder_linear_weight(weights, 1)  # the count of rows changes nothing
    multiply = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: multiply(x, held, None, "none", [], "")
