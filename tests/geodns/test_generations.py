"""The bounded cache."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from control_plane.geodns.generations import Generations


@given(st.integers(1, 5), st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=200))
def test_it_never_lies_never_grows_and_keeps_what_is_used(
    limit: int, steps: list[tuple[bool, int]]
) -> None:
    cache: Generations[int, str] = Generations(limit)
    used: list[int] = []  # keys by last use, newest last
    for is_put, key in steps:
        got = cache.get(key)
        assert got in (None, str(key))
        if is_put:
            cache.put(key, str(key))
        if is_put or got is not None:
            used = [k for k in used if k != key] + [key]
        assert len(cache) <= 2 * limit
        # Like an LRU list of `limit` entries at least.
        for recent in used[-limit:]:
            assert recent in cache.young or recent in cache._old


def test_clearing() -> None:
    cache: Generations[int, int] = Generations(1)
    cache.put(1, 1)
    cache.put(2, 2)
    assert cache.turns == 1
    cache.clear()
    assert (len(cache), cache.get(1), cache.get(2)) == (0, None, None)
