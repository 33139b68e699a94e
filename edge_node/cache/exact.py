"""The exact response cache: answers by request, bounded in bytes, least recently used first out.

Pure: `now` is an argument, in seconds on any clock that never goes back. Two ways lead to an
entry. Its *key* says what the answer depends on. An *alias* is one spelling of the
request, a digest of its bytes, with the reply already encoded for it, so that an exact repeat
is answered without being parsed. Aliases say nothing about who may ask: `forget_aliases` at every
change of configuration makes the next request of each spelling go the long way once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")
R = TypeVar("R")

# What Python keeps besides the payload, measured with sys.getsizeof over one of each.
ENTRY_OVERHEAD_BYTES = 700
ALIAS_OVERHEAD_BYTES = 400
# One entry may take this share of the cache at most, so that no answer empties it.
MAX_SHARE = 8
# Spellings remembered for one entry; the oldest makes way.
MAX_ALIASES = 8


class Entry(Generic[V]):
    """A cached value. `live` is False once the cache has let go of it."""

    __slots__ = ("aliases", "expires", "key", "live", "size_bytes", "value")

    def __init__(self, key: Hashable, value: V, size_bytes: int, expires: float) -> None:
        self.key = key
        self.value = value
        self.size_bytes = size_bytes
        self.expires = expires
        self.aliases: dict[Hashable, int] = {}  # spelling -> bytes charged for it
        self.live = True


class _Alias(Generic[V, R]):
    __slots__ = ("entry", "generation", "reply")

    def __init__(self, entry: Entry[V], generation: int, reply: R) -> None:
        self.entry = entry
        self.generation = generation
        self.reply = reply


class ExactCache(Generic[V, R]):
    """Values `V` by key, and encoded replies `R` by alias, within `max_bytes` in all."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self.evicted = 0
        self.expired = 0
        self.refused = 0  # values too large to keep
        self._entries: OrderedDict[Hashable, Entry[V]] = OrderedDict()
        self._aliases: dict[Hashable, _Alias[V, R]] = {}
        self._generation = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def aliases(self) -> int:
        return len(self._aliases)

    def get(self, key: Hashable, now: float) -> Entry[V] | None:
        """The entry for `key`, which becomes the most recently used."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires <= now:
            self._drop(entry)
            self.expired += 1
            return None
        self._entries.move_to_end(key)
        return entry

    def put(self, key: Hashable, value: V, size_bytes: int, ttl_s: float, now: float) -> bool:
        """Keep `value`, whose payload is `size_bytes`; False when it may not be kept."""
        old = self._entries.get(key)
        if old is not None:
            self._drop(old)
        size = size_bytes + ENTRY_OVERHEAD_BYTES
        if ttl_s <= 0 or size > self.max_bytes // MAX_SHARE:
            self.refused += 1
            return False
        self._entries[key] = Entry(key, value, size, now + ttl_s)
        self.used_bytes += size
        self._shrink()
        return True

    def reply(self, spelling: Hashable, now: float) -> R | None:
        """The encoded reply for an exact spelling of a request, if it is known and fresh."""
        alias = self._aliases.get(spelling)
        if alias is None:
            return None
        entry = alias.entry
        if alias.generation != self._generation:
            self._drop_alias(entry, spelling)
            return None
        if entry.expires <= now:
            self._drop(entry)
            self.expired += 1
            return None
        self._entries.move_to_end(entry.key)
        return alias.reply

    def remember(self, entry: Entry[V], spelling: Hashable, reply: R, size_bytes: int) -> bool:
        """Let `spelling` lead to `entry` with `reply`, whose own payload is `size_bytes`."""
        size = size_bytes + ALIAS_OVERHEAD_BYTES
        if not entry.live or size > self.max_bytes // MAX_SHARE:
            return False
        held = self._aliases.get(spelling)
        if held is not None:
            self._drop_alias(held.entry, spelling)
        if len(entry.aliases) >= MAX_ALIASES:
            self._drop_alias(entry, next(iter(entry.aliases)))
        self._aliases[spelling] = _Alias(entry, self._generation, reply)
        entry.aliases[spelling] = size
        self.used_bytes += size
        self._entries.move_to_end(entry.key)
        self._shrink()
        return entry.live

    def forget_aliases(self) -> None:
        """Make every alias invalid. Takes no time: each goes when it is next met."""
        self._generation += 1

    def resize(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._shrink()

    def _shrink(self) -> None:
        while self.used_bytes > self.max_bytes and self._entries:
            self._drop(next(iter(self._entries.values())))
            self.evicted += 1

    def _drop(self, entry: Entry[V]) -> None:
        del self._entries[entry.key]
        entry.live = False
        self.used_bytes -= entry.size_bytes + sum(entry.aliases.values())
        for spelling in entry.aliases:
            del self._aliases[spelling]
        entry.aliases.clear()

    def _drop_alias(self, entry: Entry[V], spelling: Hashable) -> None:
        del self._aliases[spelling]
        self.used_bytes -= entry.aliases.pop(spelling)
