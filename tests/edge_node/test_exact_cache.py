"""The exact cache against a naive oracle, and its rules one by one."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from edge_node.cache.exact import (
    ALIAS_OVERHEAD_BYTES,
    ENTRY_OVERHEAD_BYTES,
    MAX_ALIASES,
    MAX_SHARE,
    ExactCache,
)

ROOM = 100 * ENTRY_OVERHEAD_BYTES


@dataclass
class _Kept:
    key: str
    value: int
    size: int
    expires: float
    aliases: list[tuple[bytes, int, int, int]] = field(default_factory=list)


class Oracle:
    """The same rules, by walking a list: least recently used first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.kept: list[_Kept] = []
        self.generation = 0

    @property
    def used_bytes(self) -> int:
        return sum(k.size + sum(a[2] for a in k.aliases) for k in self.kept)

    def _find(self, key: str) -> _Kept | None:
        return next((k for k in self.kept if k.key == key), None)

    def _touch(self, kept: _Kept) -> None:
        self.kept.remove(kept)
        self.kept.append(kept)

    def _shrink(self) -> None:
        while self.used_bytes > self.max_bytes and self.kept:
            self.kept.pop(0)

    def get(self, key: str, now: float) -> int | None:
        kept = self._find(key)
        if kept is None:
            return None
        if kept.expires <= now:
            self.kept.remove(kept)
            return None
        self._touch(kept)
        return kept.value

    def put(self, key: str, value: int, size: int, ttl_s: float, now: float) -> bool:
        kept = self._find(key)
        if kept is not None:
            self.kept.remove(kept)
        size += ENTRY_OVERHEAD_BYTES
        if ttl_s <= 0 or size > self.max_bytes // MAX_SHARE:
            return False
        self.kept.append(_Kept(key, value, size, now + ttl_s))
        self._shrink()
        return True

    def remember(self, key: str, spelling: bytes, reply: int, size: int) -> bool:
        size += ALIAS_OVERHEAD_BYTES
        kept = self._find(key)
        assert kept is not None
        if size > self.max_bytes // MAX_SHARE:
            return False
        for other in self.kept:
            other.aliases = [a for a in other.aliases if a[0] != spelling]
        if len(kept.aliases) >= MAX_ALIASES:
            kept.aliases.pop(0)
        kept.aliases.append((spelling, reply, size, self.generation))
        self._touch(kept)
        self._shrink()
        return kept in self.kept

    def reply(self, spelling: bytes, now: float) -> int | None:
        for kept in self.kept:
            for alias in kept.aliases:
                if alias[0] != spelling:
                    continue
                if alias[3] != self.generation:
                    kept.aliases.remove(alias)
                    return None
                if kept.expires <= now:
                    self.kept.remove(kept)
                    return None
                self._touch(kept)
                return alias[1]
        return None


KEYS = st.sampled_from([f"k{n}" for n in range(12)])
SPELLINGS = st.sampled_from([bytes([n]) for n in range(30)])
SIZES = st.integers(0, ROOM // MAX_SHARE + 2000)
STEPS = st.one_of(
    st.tuples(st.just("get"), KEYS),
    st.tuples(st.just("put"), KEYS, SIZES, st.sampled_from([0.0, 1.0, 5.0, 1e9])),
    st.tuples(st.just("remember"), KEYS, SPELLINGS, st.integers(0, 3000)),
    st.tuples(st.just("reply"), SPELLINGS),
    st.tuples(st.just("pass"), st.sampled_from([0.1, 1.0, 4.0])),
    st.tuples(st.just("forget")),
    st.tuples(st.just("resize"), st.sampled_from([0, ROOM // 3, ROOM])),
)


@given(st.lists(STEPS, max_size=120))
def test_behaves_like_the_oracle(steps: list[tuple[object, ...]]) -> None:
    cache: ExactCache[int, int] = ExactCache(ROOM)
    oracle = Oracle(ROOM)
    now = 0.0
    for counter, step in enumerate(steps):
        match step:
            case ("get", str(key)):
                entry = cache.get(key, now)
                assert (entry.value if entry else None) == oracle.get(key, now)
            case ("put", str(key), int(size), float(ttl)):
                kept = cache.put(key, counter, size, ttl, now)
                assert (kept is not None) == oracle.put(key, counter, size, ttl, now)
            case ("remember", str(key), bytes(spelling), int(size)):
                entry = cache.get(key, now)
                assert (entry is None) == (oracle.get(key, now) is None)
                if entry is not None:
                    held = cache.remember(entry, spelling, counter, size)
                    assert held == oracle.remember(key, spelling, counter, size)
            case ("reply", bytes(spelling)):
                assert cache.reply(spelling, now) == oracle.reply(spelling, now)
            case ("pass", float(seconds)):
                now += seconds
            case ("forget",):
                cache.forget_aliases()
                oracle.generation += 1
            case ("resize", int(size)):
                cache.resize(size)
                oracle.max_bytes = size
                oracle._shrink()
        assert cache.used_bytes == oracle.used_bytes <= max(cache.max_bytes, 0)
        assert len(cache) == len(oracle.kept)
        assert cache.aliases == sum(len(k.aliases) for k in oracle.kept)


def _filled() -> ExactCache[str, bytes]:
    cache: ExactCache[str, bytes] = ExactCache(ROOM)
    assert cache.put("key", "value", 10, 60.0, now=0.0)
    return cache


def test_the_oldest_unused_entry_goes_first() -> None:
    cache: ExactCache[str, bytes] = ExactCache(10 * ENTRY_OVERHEAD_BYTES)
    for n in range(10):
        cache.put(f"k{n}", "v", 0, 60.0, now=0.0)
    assert cache.get("k0", now=1.0) is not None  # used: k1 is now the oldest
    cache.put("k10", "v", 0, 60.0, now=1.0)
    assert cache.get("k1", now=1.0) is None
    assert cache.get("k0", now=1.0) is not None
    assert cache.evicted == 1


def test_an_entry_expires_at_its_time_and_takes_its_aliases_along() -> None:
    cache = _filled()
    entry = cache.get("key", now=59.9)
    assert entry is not None
    cache.remember(entry, b"spelling", b"reply", 5)
    assert cache.reply(b"spelling", now=59.9) == b"reply"
    assert cache.reply(b"spelling", now=60.0) is None
    assert (len(cache), cache.aliases, cache.used_bytes) == (0, 0, 0)


def test_forgotten_aliases_answer_nothing_and_cost_nothing_twice() -> None:
    cache = _filled()
    entry = cache.get("key", now=0.0)
    assert entry is not None
    cache.remember(entry, b"spelling", b"old", 5)
    used = cache.used_bytes
    cache.forget_aliases()
    assert cache.reply(b"spelling", now=0.0) is None
    cache.remember(entry, b"spelling", b"new", 5)
    assert cache.used_bytes == used
    assert cache.reply(b"spelling", now=0.0) == b"new"


def test_spellings_of_one_entry_are_bounded() -> None:
    cache = _filled()
    entry = cache.get("key", now=0.0)
    assert entry is not None
    for n in range(3 * MAX_ALIASES):
        cache.remember(entry, bytes([n]), b"reply", 1)
    assert cache.aliases == MAX_ALIASES


def test_a_cache_without_room_keeps_nothing() -> None:
    cache: ExactCache[str, bytes] = ExactCache(0)
    assert not cache.put("key", "value", 1, 60.0, now=0.0)
    assert cache.refused == 1


def test_an_entry_that_was_let_go_takes_no_alias() -> None:
    cache = _filled()
    entry = cache.get("key", now=0.0)
    assert entry is not None
    cache.resize(0)
    assert not cache.remember(entry, b"spelling", b"reply", 1)
    assert cache.aliases == 0
