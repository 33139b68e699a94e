"""The exact response cache: answers by request, bounded in bytes, least recently used first out.

Pure: `now` is an argument, in seconds on any clock that never goes back. Two ways lead to an
entry. Its *key* says what the answer depends on. An *alias* is one spelling of the
request, a digest of its bytes, with the reply already encoded for it, so that an exact repeat
is answered without being parsed. Aliases say nothing about who may ask: `forget_aliases` at every
change of configuration makes the next request of each spelling go the long way once.

Each entry has an owner. When there is no room, an owner that holds more than `share` of the cache
gives way first: to itself where it is the one that brings something in. So nobody whose part is
within the share loses anything to somebody whose part is not.

An entry outlives its end by `keep_s`, for those who ask for it all the same (`get(late_s=...)`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")
R = TypeVar("R")

# What Python keeps besides the payload, measured with sys.getsizeof over one of each; an entry's
# owner may have no other, so the owner's part is counted in.
ENTRY_OVERHEAD_BYTES = 1100
ALIAS_OVERHEAD_BYTES = 400
# One entry may take this share of the cache at most, so that no answer empties it.
MAX_SHARE = 8
# Spellings remembered for one entry; the oldest makes way.
MAX_ALIASES = 8


class Entry(Generic[V]):
    """A cached value. `live` is False once the cache has let go of it."""

    __slots__ = ("aliases", "asked_at", "expires", "key", "live", "part", "size_bytes", "value")

    def __init__(
        self, key: Hashable, value: V, size_bytes: int, expires: float, part: _Part[V]
    ) -> None:
        self.key = key
        self.value = value
        self.size_bytes = size_bytes
        self.expires = expires
        self.part = part
        self.aliases: dict[Hashable, int] = {}  # spelling -> bytes charged for it
        self.live = True
        self.asked_at = float("-inf")  # when somebody was last sent for a fresh one


class _Part(Generic[V]):
    """What one owner holds, least recently used first."""

    __slots__ = ("entries", "owner", "used_bytes")

    def __init__(self, owner: Hashable) -> None:
        self.owner = owner
        self.used_bytes = 0
        self.entries: OrderedDict[Hashable, Entry[V]] = OrderedDict()


class _Alias(Generic[V, R]):
    __slots__ = ("entry", "generation", "reply")

    def __init__(self, entry: Entry[V], generation: int, reply: R) -> None:
        self.entry = entry
        self.generation = generation
        self.reply = reply


class ExactCache(Generic[V, R]):
    """Values `V` by key, and encoded replies `R` by alias, within `max_bytes` in all."""

    def __init__(self, max_bytes: int, share: float = 1.0, keep_s: float = 0.0) -> None:
        self.max_bytes = max_bytes
        self.keep_s = keep_s
        self.used_bytes = 0
        self.evicted = 0
        self.expired = 0
        self.refused = 0  # values too large to keep
        self._share = share
        self._entries: OrderedDict[Hashable, Entry[V]] = OrderedDict()
        self._parts: dict[Hashable, _Part[V]] = {}
        self._over: dict[Hashable, _Part[V]] = {}  # those above the share: 1 / share at most
        self._aliases: dict[Hashable, _Alias[V, R]] = {}
        self._generation = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def aliases(self) -> int:
        return len(self._aliases)

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
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires <= now:
            if entry.expires + self.keep_s <= now:
                self._drop(entry)
                self.expired += 1
                return None
            if entry.expires + late_s <= now:
                return None
        self._entries.move_to_end(key)
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
        old = self._entries.get(key)
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
        self._entries[key] = entry
        part.entries[key] = entry
        self._charge(part, size)
        self._shrink(part)
        return entry if entry.live else None

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
            if entry.expires + self.keep_s <= now:
                self._drop(entry)
                self.expired += 1
            return None
        self._entries.move_to_end(entry.key)
        entry.part.entries.move_to_end(entry.key)
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
        self._entries.move_to_end(entry.key)
        entry.part.entries.move_to_end(entry.key)
        self._charge(entry.part, size)
        self._shrink(entry.part)
        return entry.live

    def forget_aliases(self) -> None:
        """Make every alias invalid. Takes no time: each goes when it is next met."""
        self._generation += 1

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
        while self.used_bytes > self.max_bytes and self._entries:
            self._drop(self._oldest(newcomer))
            self.evicted += 1

    def _oldest(self, newcomer: _Part[V] | None) -> Entry[V]:
        """Whose turn it is to go."""
        entries = self._entries
        if newcomer is not None and newcomer.owner in self._over:
            entries = newcomer.entries
        elif self._over:
            entries = max(self._over.values(), key=lambda part: part.used_bytes).entries
        return next(iter(entries.values()))

    def _drop(self, entry: Entry[V]) -> None:
        part = entry.part
        del self._entries[entry.key]
        del part.entries[entry.key]
        entry.live = False
        self._charge(part, -entry.size_bytes - sum(entry.aliases.values()))
        if not part.entries:
            del self._parts[part.owner]
            self._over.pop(part.owner, None)
        for spelling in entry.aliases:
            del self._aliases[spelling]
        entry.aliases.clear()

    def _drop_alias(self, entry: Entry[V], spelling: Hashable) -> None:
        del self._aliases[spelling]
        self._charge(entry.part, -entry.aliases.pop(spelling))
