"""The exact response cache of an edge worker: answers by request.

Two ways lead to an entry. Its *key* says what the answer depends on. An *alias* is one spelling of
the request, a digest of its bytes, with the reply already encoded for it, so that an exact repeat
is answered without being parsed. Aliases say nothing about who may ask: `forget_aliases` at every
change of configuration makes the next request of each spelling go the long way once.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from topology.shared_cache import ENTRY_OVERHEAD_BYTES, MAX_SHARE, Entry, SharedCache

__all__ = ["ENTRY_OVERHEAD_BYTES", "MAX_SHARE", "Entry", "ExactCache"]

V = TypeVar("V")
R = TypeVar("R")

ALIAS_OVERHEAD_BYTES = 400
# Spellings remembered for one entry; the oldest makes way.
MAX_ALIASES = 8


class _Alias(Generic[V, R]):
    __slots__ = ("entry", "generation", "reply")

    def __init__(self, entry: Entry[V], generation: int, reply: R) -> None:
        self.entry = entry
        self.generation = generation
        self.reply = reply


class ExactCache(SharedCache[V], Generic[V, R]):
    """Values `V` by key, and encoded replies `R` by alias, within `max_bytes` in all."""

    def __init__(self, max_bytes: int, share: float = 1.0, keep_s: float = 0.0) -> None:
        super().__init__(max_bytes, share, keep_s)
        self._aliases: dict[Hashable, _Alias[V, R]] = {}
        self._generation = 0

    @property
    def aliases(self) -> int:
        return len(self._aliases)

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
        self.entries.move_to_end(entry.key)
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
        if entry.aliases is None:
            entry.aliases = {}
        elif len(entry.aliases) >= MAX_ALIASES:
            self._drop_alias(entry, next(iter(entry.aliases)))
        self._aliases[spelling] = _Alias(entry, self._generation, reply)
        entry.aliases[spelling] = size
        entry.charged_bytes += size
        self.entries.move_to_end(entry.key)
        entry.part.entries.move_to_end(entry.key)
        self._charge(entry.part, size)
        self._shrink(entry.part)
        return entry.live

    def forget_aliases(self) -> None:
        """Make every alias invalid. Takes no time: each goes when it is next met."""
        self._generation += 1

    def _drop(self, entry: Entry[V]) -> None:
        super()._drop(entry)
        if entry.aliases is not None:
            for spelling in entry.aliases:
                del self._aliases[spelling]
            entry.aliases = None

    def _drop_alias(self, entry: Entry[V], spelling: Hashable) -> None:
        del self._aliases[spelling]
        assert entry.aliases is not None  # the alias was one of them
        size = entry.aliases.pop(spelling)
        entry.charged_bytes -= size
        self._charge(entry.part, -size)
