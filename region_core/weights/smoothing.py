"""Even out the inputs of matrix products before numbers are rounded to eight bits.

A few channels of what a norm gives are ten times as large as the rest; with one scale for a whole
row, all others are then told with few steps. Each channel can be made smaller in the norm's
weights and its column of the matrix larger by the same factor, which changes nothing but the
rounding (SmoothQuant: Xiao et al. 2023). Needs how large each channel becomes on some text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from region_core.weights.gguf_file import Matrix

# The matrix that reads what a norm gives.
READERS = {"attention_norm": "qkv", "hidden_norm": "gate_up"}

Largest = Mapping[str, NDArray[np.float32]]  # by the norm's name: of each channel, `[width]`

_SHARE = 0.6  # of the difficulty that goes to the matrix; the paper's values are 0.4 to 0.6
_LEAST = 1e-5


def smoothed(
    matrices: Iterable[tuple[str, Matrix]], largest: Largest
) -> Iterator[tuple[str, Matrix]]:
    """The same tensors, those of a norm and its reader changed. Each norm comes before its reader,
    with nothing in between."""
    held: tuple[str, Matrix] | None = None
    for name, matrix in matrices:
        if name in largest:
            held = (name, matrix)
        elif held is not None:
            by = factors(largest[held[0]], matrix)
            yield held[0], matrix_of(held[1] / by)
            yield name, matrix_of(matrix * by)
            held = None
        else:
            yield name, matrix


def factors(largest: NDArray[np.float32], reader: Matrix) -> Matrix:
    """What each channel is divided by, `[width]`."""
    inputs = np.maximum(largest, _LEAST) ** _SHARE
    return matrix_of(inputs / np.maximum(np.abs(reader).max(0), _LEAST) ** (1 - _SHARE))


def matrix_of(numbers: NDArray[np.float32]) -> Matrix:
    return np.asarray(numbers, dtype=np.float32)
