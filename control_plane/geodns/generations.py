"""A bounded cache that costs its reader one dictionary lookup: two generations.

New and used entries lie in `young`. When it is full it becomes `old`, and what was old is
forgotten; an entry found in `old` is moved to `young`. So what is used within a generation
stays, as in an LRU list, without any bookkeeping on a hit.
"""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Generations(Generic[K, V]):
    """Holds at least the last `limit` and at most `2 * limit` entries. V must not be None.

    A fast path may read `young` itself; it must fetch the attribute anew for each batch.
    """

    __slots__ = ("_old", "limit", "turns", "young")

    def __init__(self, limit: int) -> None:
        self.limit = max(1, limit)
        self.young: dict[K, V] = {}
        self._old: dict[K, V] = {}
        self.turns = 0  # how often a generation was forgotten

    def __len__(self) -> int:
        return len(self.young) + len(self._old)

    def get(self, key: K) -> V | None:
        value = self.young.get(key)
        if value is None:
            value = self._old.pop(key, None)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: K, value: V) -> None:
        if len(self.young) >= self.limit and key not in self.young:
            self._old = self.young
            self.young = {}
            self.turns += 1
        self.young[key] = value

    def clear(self) -> None:
        self.young = {}
        self._old = {}
