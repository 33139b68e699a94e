"""How the rows of a step are laid over the cache, so that attention copies nothing.

The cache holds one stripe per slot, each as long as a whole context. Attention takes a run of
neighbouring slots up to a common length; what a sequence does not fill is masked, and costs as
if it were filled. Splitting a run saves that waste and costs one more call per layer. The
split below is the cheapest one (dynamic programming over the runs).

A row must get the same bits whatever runs beside it, wherever its prompt was cut into chunks, and
in any region. On a CPU torch's attention keeps to that when
- decoding runs over a length that is a multiple of 16 (`QUANTUM` is one): what is masked behind
  the row then changes nothing;
- input is taken in blocks that lie on a grid of `BLOCK_TOKENS` positions, over the length at the
  end of the row's block, by 8 tokens or more at a time (`PAD_TOKENS`);
- Intel's MKL, which torch multiplies with there, is told not to let results depend on the address
  of a buffer, and so on the thread (`MKL_CBWR`, see engine/process.py).
Found by comparing bits (tests/region_core/test_bits.py; docs/performance.md, "Engine").
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

QUANTUM = 32
BLOCK_TOKENS = 64  # a multiple of QUANTUM
PAD_TOKENS = 8
CALL_COST = 512  # one call costs as much as this many cached tokens (30 us against 60 ns)


class Run(Struct, frozen=True):
    """Rows `start` to `stop` decode in slots from `slot` on, over `length` cached tokens."""

    start: int
    stop: int
    slot: int
    length: int


class Block(Struct, frozen=True):
    """Rows `start` to `stop` are input of one slot, at positions from `position` on.

    `replay` marks tokens of an answer that was begun elsewhere. They go through the code that
    decodes, row by row, so that they leave the very bits in the cache that decoding had left.
    """

    start: int
    stop: int
    slot: int
    position: int
    length: int
    replay: bool


def rounded(length: int, quantum: int = QUANTUM) -> int:
    """Up to a multiple of `quantum`."""
    return -(-length // quantum) * quantum


def runs(slots: Sequence[int], lengths: Sequence[int]) -> list[Run]:
    """The cheapest cover of the decoding rows. `slots` ascend; row i decodes in `slots[i]`.

    `lengths` count the token being decoded.
    """
    count = len(slots)
    cheapest = [0.0] + [float("inf")] * count
    begins = [0] * (count + 1)
    for stop in range(1, count + 1):
        longest = 0
        for start in range(stop - 1, -1, -1):
            if slots[stop - 1] - slots[start] != stop - 1 - start:
                break
            longest = max(longest, rounded(lengths[start]))
            cost = cheapest[start] + CALL_COST + (stop - start) * longest
            if cost < cheapest[stop]:
                cheapest[stop], begins[stop] = cost, start
    cover = []
    stop = count
    while stop:
        start = begins[stop]
        longest = max(rounded(length) for length in lengths[start:stop])
        cover.append(Run(start, stop, slots[start], longest))
        stop = start
    return cover[::-1]


def blocks(row: int, slot: int, position: int, count: int, prompt: int) -> list[Block]:
    """Cut a chunk of input into blocks. The first `prompt` tokens of a sequence are its prompt.

    `row` is the step's row of the chunk's first token, `position` that token's place.
    """
    cut = []
    end = position + count
    while position < end:
        replay = position >= prompt
        cell = (position // BLOCK_TOKENS + 1) * BLOCK_TOKENS
        stop = min(end, cell) if replay else min(end, cell, prompt)
        size = stop - position
        length = rounded(stop) if replay else cell
        cut.append(Block(row, row + size, slot, position, length, replay))
        row += size
        position = stop
    return cut
