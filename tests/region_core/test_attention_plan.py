"""The cover of decoding rows by runs, against every possible cover."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from region_core.engine.attention_plan import BLOCK_TOKENS, CALL_COST, blocks, rounded, runs


def cost(slots: list[int], lengths: list[int], cuts: tuple[int, ...]) -> float:
    """Of cutting behind each row whose cut is 1; infinite where a run has a gap."""
    total, start = 0.0, 0
    for stop in range(1, len(slots) + 1):
        if stop < len(slots) and not cuts[stop - 1]:
            continue
        if slots[stop - 1] - slots[start] != stop - 1 - start:
            return float("inf")
        longest = max(rounded(length) for length in lengths[start:stop])
        total += CALL_COST + (stop - start) * longest
        start = stop
    return total


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 9), st.integers(1, 1500)), max_size=7, unique_by=lambda r: r[0]
    )
)
def test_the_cover_is_the_cheapest(rows: list[tuple[int, int]]) -> None:
    rows.sort()
    slots, lengths = [r[0] for r in rows], [r[1] for r in rows]
    cover = runs(slots, lengths)
    assert [row for run in cover for row in range(run.start, run.stop)] == list(range(len(rows)))
    for run in cover:
        assert slots[run.start : run.stop] == list(range(run.slot, run.slot + run.stop - run.start))
        assert run.length == max(rounded(length) for length in lengths[run.start : run.stop])
    if rows:
        ours = sum(CALL_COST + (run.stop - run.start) * run.length for run in cover)
        assert ours == min(cost(slots, lengths, c) for c in product((0, 1), repeat=len(rows) - 1))


@given(st.integers(0, 50), st.integers(0, 300), st.integers(1, 300), st.integers(1, 400))
def test_blocks_cover_a_chunk_and_respect_the_prompt(
    row: int, position: int, count: int, prompt: int
) -> None:
    cut = blocks(row, 4, position, count, prompt)
    assert [r for b in cut for r in range(b.start, b.stop)] == list(range(row, row + count))
    for block in cut:
        size = block.stop - block.start
        assert size <= BLOCK_TOKENS
        assert block.position - position == block.start - row
        assert block.position // BLOCK_TOKENS == (block.position + size - 1) // BLOCK_TOKENS
        cell = (block.position // BLOCK_TOKENS + 1) * BLOCK_TOKENS
        assert block.length == (rounded(block.position + size) if block.replay else cell)
        inside = [block.position + i >= prompt for i in range(size)]
        assert set(inside) == {block.replay}
