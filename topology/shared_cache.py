"""A bounded cache that owners share: least recently used first out, each owner within its share.

Pure: `now` is an argument, in seconds on any clock that never goes back. When there is no room, an
owner that holds more than `share` of the cache gives way first: to itself where it is the one that
brings something in. So nobody whose part is within the share loses anything to somebody whose part
is not.

An entry outlives its end by `keep_s`, for those who ask for it all the same (`get(late_s=...)`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")

# What Python keeps besides the payload, measured with sys.getsizeof over one of each; an entry's
# owner may have no other, so the owner's part is counted in.
ENTRY_OVERHEAD_BYTES = 1100
# One entry may take this share of the cache at most, so that no answer empties it.
MAX_SHARE = 8


class Entry(Generic[V]):
    """A cached value. `live` is False once the cache has let go of it. `charged_bytes` is all that
    it counts for, `aliases` what else leads to it (`edge_node.cache.exact`)."""

    __slots__ = ("aliases", "asked_at", "charged_bytes", "expires", "key", "live", "part", "value")

    def __init__(
        self, key: Hashable, value: V, size_bytes: int, expires: float, part: _Part[V]
    ) -> None:
        self.key = key
        self.value = value
        self.charged_bytes = size_bytes
        self.expires = expires
        self.part = part
        self.aliases: dict[Hashable, int] | None = None
        self.live = True
        self.asked_at = float("-inf")  # when somebody was last sent for a fresh one


class _Part(Generic[V]):
    """What one owner holds, least recently used first."""

    __slots__ = ("entries", "owner", "used_bytes")

    def __init__(self, owner: Hashable) -> None:
        self.owner = owner
        self.used_bytes = 0
        self.entries: OrderedDict[Hashable, Entry[V]] = OrderedDict()


class SharedCache(Generic[V]):
    """Values `V` by key, within `max_bytes` in all."""

    def __init__(self, max_bytes: int, share: float = 1.0, keep_s: float = 0.0) -> None:
        self.max_bytes = max_bytes
        self.keep_s = keep_s
        self.used_bytes = 0
        self.evicted = 0
        self.expired = 0
        self.refused = 0  # values too large to keep
        self._share = share
        self.entries: OrderedDict[Hashable, Entry[V]] = OrderedDict()  # for reading
        self._parts: dict[Hashable, _Part[V]] = {}
        self._over: dict[Hashable, _Part[V]] = {}  # those above the share: 1 / share at most

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def owners(self) -> int:
        return len(self._parts)

    def held_by(self, owner: Hashable) -> int:
        """Bytes of one owner."""
        part = self._parts.get(owner)
        return 0 if part is None else part.used_bytes

    def get(self, key: Hashable, now: float, late_s: float = 0.0) -> Entry[V] | None:
        """The entry for `key`, which becomes the most recently used; one that has ended too, but
        for less than `late_s`."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        if entry.expires <= now:
            if entry.expires + self.keep_s <= now:
                self._drop(entry)
                self.expired += 1
                return None
            if entry.expires + late_s <= now:
                return None
        self.entries.move_to_end(key)
        entry.part.entries.move_to_end(key)
        return entry

    def put(
        self,
        key: Hashable,
        value: V,
        size_bytes: int,
        ttl_s: float,
        now: float,
        owner: Hashable = None,
    ) -> Entry[V] | None:
        """Keep `value`, whose payload is `size_bytes`; None when it may not be kept. One that has
        ended already (`ttl_s` below 0) is kept while its time after the end lasts."""
        old = self.entries.get(key)
        if old is not None:
            self._drop(old)
        size = size_bytes + ENTRY_OVERHEAD_BYTES
        if ttl_s <= -self.keep_s or size > self.max_bytes // MAX_SHARE:
            self.refused += 1
            return None
        part = self._parts.get(owner)
        if part is None:
            part = self._parts[owner] = _Part(owner)
        entry = Entry(key, value, size, now + ttl_s, part)
        self.entries[key] = entry
        part.entries[key] = entry
        self._charge(part, size)
        self._shrink(part)
        return entry if entry.live else None

    def resize(self, max_bytes: int, share: float | None = None) -> None:
        self.max_bytes = max_bytes
        if share is not None:
            self._share = share
        self._over = {o: p for o, p in self._parts.items() if p.used_bytes > self._fair_bytes}
        self._shrink(None)

    @property
    def _fair_bytes(self) -> float:
        return self._share * self.max_bytes

    def _charge(self, part: _Part[V], size: int) -> None:
        """`size` is below 0 where it is given back."""
        self.used_bytes += size
        part.used_bytes += size
        if part.used_bytes > self._fair_bytes:
            self._over[part.owner] = part
        else:
            self._over.pop(part.owner, None)

    def _shrink(self, newcomer: _Part[V] | None) -> None:
        while self.used_bytes > self.max_bytes and self.entries:
            self._drop(self._oldest(newcomer))
            self.evicted += 1

    def _oldest(self, newcomer: _Part[V] | None) -> Entry[V]:
        """Whose turn it is to go."""
        entries = self.entries
        if newcomer is not None and newcomer.owner in self._over:
            entries = newcomer.entries
        elif self._over:
            entries = max(self._over.values(), key=lambda part: part.used_bytes).entries
        return next(iter(entries.values()))

    def _drop(self, entry: Entry[V]) -> None:
        part = entry.part
        del self.entries[entry.key]
        del part.entries[entry.key]
        entry.live = False
        self._charge(part, -entry.charged_bytes)
        if not part.entries:
            del self._parts[part.owner]
            self._over.pop(part.owner, None)
