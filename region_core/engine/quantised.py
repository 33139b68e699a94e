"""Weights of eight bits: a matrix of int8 and a scale for each of its rows.

Three ways to multiply with them, and which one is taken depends on what the device has:

- On a CPU with VNNI instructions, inputs are rounded to eight bits too and products are summed as
  integers (fbgemm). Each input row is first divided by its largest number, so that one fixed scale
  suits all of them: a row's bits do not depend on the other rows, as they would if one scale were
  sought for the whole batch. The sums are exact, so they do not depend on their order either.
- On other CPUs, and without a packed copy, weights alone are of eight bits (aten's kernel).
- On other devices the same, in two operations that each of them has.

Weights alone were not faster than bfloat16 on a CPU, since products of few rows are then bound by
the conversion, and of many rows by the arithmetic (decision 0023).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# Elements from which on torch shares an operation among threads (at::internal::GRAIN_SIZE). To wake
# one takes 55 microseconds (GOMP_SPINCOUNT=1000), ten times as long as a piece of such a size does.
_GRAIN = 32_768
_INTEGER = "linear_with_input_q_dq_qweight_dq_output_fp32"  # of torch.ops.quantized
_STEPS = 127
_ZERO = 128  # fbgemm's inputs are unsigned
_LEAST = 1e-30  # of a row's largest number: a row of zeros stays one


class Quantised(NamedTuple):
    """A matrix `[out, in]`: `numbers` int8 of that shape times `scales` `[out]`, float32."""

    numbers: Tensor
    scales: Tensor

    def rows(self, ids: Tensor) -> Tensor:
        """Those rows in float32: `[*ids.shape, in]`."""
        return self.numbers[ids].float() * self.scales[ids].unsqueeze(-1)


def quantise(matrix: Tensor) -> Quantised:
    """The nearest of 255 steps for each number of `[out, in]`, symmetric, a scale for each row."""
    scales = matrix.float().abs().amax(1).clamp_min(_LEAST) / _STEPS
    numbers = (matrix.float() / scales[:, None]).round_().to(torch.int8)
    return Quantised(numbers, scales)


def can_pack_int8(device: torch.device) -> bool:
    """Whether `integer_product` is to be had. Without VNNI, pairs of products are summed in 16
    bits, which overflow."""
    return (
        device.type == "cpu"
        and "fbgemm" in torch.backends.quantized.supported_engines
        and hasattr(torch.ops.quantized, _INTEGER)
        and bool(torch.cpu._is_vnni_supported())
    )


def integer_product(weights: Quantised) -> Callable[[Tensor], Tensor]:
    """`x [rows, in]` -> `x @ weights.T`, float32, with inputs of eight bits and exact sums. The
    weights are copied into fbgemm's order."""
    held = _packed(weights)
    multiply = getattr(torch.ops.quantized, _INTEGER).default

    def product(x: Tensor) -> Tensor:
        unit, largest = _by_row(x.float())
        return _scale(multiply(unit, 1 / _STEPS, _ZERO, held), largest)

    return product


def plain_product(weights: Quantised) -> Callable[[Tensor], Tensor]:
    """The same without a copy, for any device: inputs stay bfloat16, the result is float32."""
    numbers, scales = weights
    if numbers.device.type == "cpu":
        narrow = scales.to(torch.bfloat16)
        return lambda x: torch._weight_int8pack_mm(x.to(torch.bfloat16), numbers, narrow).float()
    return lambda x: any_device(x, weights)


def any_device(x: Tensor, weights: Quantised) -> Tensor:
    """In operations that each device has."""
    wide = functional.linear(x.to(torch.bfloat16), weights.numbers.to(torch.bfloat16))
    return wide.float() * weights.scales


def _packed(weights: Quantised) -> object:
    zeros = torch.zeros(len(weights.scales), dtype=torch.int64)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            # Quantised tensors are to go from torch (decision 0023 says what we do then).
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
            whole = torch._make_per_channel_quantized_tensor(*weights, zeros, 0)
        return torch.ops.quantized.linear_prepack(whole, None)
    finally:
        torch.backends.quantized.engine = before


def _by_row(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x [rows, in]` with each row divided by its largest number, and those, `[rows, 1]`."""
    step = max(1, _GRAIN // x.shape[1])
    if len(x) <= step:
        largest = x.abs().amax(1, keepdim=True).clamp_min_(_LEAST)
        return x / largest, largest
    out, largest = torch.empty_like(x), x.new_empty(len(x), 1)
    for start in range(0, len(x), step):
        part, found = x[start : start + step], largest[start : start + step]
        torch.amax(part.abs(), 1, keepdim=True, out=found)
        torch.div(part, found.clamp_min_(_LEAST), out=out[start : start + step])
    return out, largest


def _scale(x: Tensor, by: Tensor) -> Tensor:
    """`x [rows, n] *= by [rows, 1]`."""
    step = max(1, _GRAIN // x.shape[1])
    for start in range(0, len(x), step):
        x[start : start + step].mul_(by[start : start + step])
    return x
