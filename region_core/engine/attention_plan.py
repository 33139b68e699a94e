"""How the rows of a step are laid over the cache, so that attention copies nothing.

The cache holds one stripe per slot, each as long as a whole context. Attention takes a run of
neighbouring slots up to a common length; what a sequence does not fill is masked, and costs as
if it were filled. Splitting a run saves that waste and costs one more call per layer. The
split below is the cheapest one (dynamic programming over the runs).

Lengths are rounded up to a multiple of `QUANTUM`: torch's CPU attention gives the same bits
for a row whatever its neighbours and its padding, as long as the length is such a multiple
(measured: multiples of 16 do; see docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

QUANTUM = 32
BLOCK_TOKENS = 64  # of input in one call; longer blocks take another code path in torch
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


def rounded(length: int) -> int:
    return -(-length // QUANTUM) * QUANTUM


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
        stop = min(end, position + BLOCK_TOKENS, end if replay else prompt)
        size = stop - position
        cut.append(Block(row, row + size, slot, position, rounded(stop), replay))
        row += size
        position = stop
    return cut
