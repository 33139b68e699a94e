"""Answers in one LMDB file that several processes share: bounded, oldest first out.

Answers stand in the order in which they came, by number, so that pages are full and those of old
answers become free; no clock has a say. Beside them there are an index by name, one by tenant and
number, and about how much each tenant takes. How much all of it takes is counted in pages. When
there is no room a tenant that holds more than its share gives way first, the writing one before
others.

One process may have a folder open once. One thread writes; another one may read meanwhile, and
reads what was whole when it began. Every method may raise `ShelfFault`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from edge_node.cache.check import LENGTH_BYTES, TABLES, parted
from edge_node.errors import ShelfFault

MIN_BYTES = 2**20
# Of the file: LMDB writes each page anew elsewhere before it lets go of the old one, and its
# pages are not full.
FILL = 0.75
PAGE_BYTES = 4096
SEQUENCE_BYTES = 8
_PAGE_ROOM_BYTES = PAGE_BYTES - 16
_NODE_BYTES = 10  # what LMDB writes before each
_READERS = 256
_EVICTED_AT_ONCE = 512  # in one transaction: others want to write too
_LEARN_EVERY = 64  # batches: who is above the share by what other processes wrote

_DAMAGE = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.IncompatibleError,
)


@contextmanager
def faults() -> Iterator[None]:
    """LMDB's errors as ours."""
    try:
        yield
    except lmdb.MapFullError as error:
        raise ShelfFault("full", str(error)) from error
    except _DAMAGE as error:
        raise ShelfFault("damaged", str(error)) from error
    except (lmdb.MapResizedError, lmdb.PanicError) as error:
        raise ShelfFault("reopen", str(error)) from error
    except (lmdb.Error, OSError) as error:
        no_space = getattr(error, "errno", None) == errno.ENOSPC or "No space" in str(error)
        raise ShelfFault("space" if no_space else "other", str(error)) from error


def charge(name: bytes, value: bytes) -> int:
    """About what an answer takes of the file, its places in the indices included."""
    node = _NODE_BYTES + SEQUENCE_BYTES + LENGTH_BYTES + len(name) + len(value)
    if node > _PAGE_ROOM_BYTES // 2:  # it has pages of its own
        size = -(-(node + _NODE_BYTES) // PAGE_BYTES) * PAGE_BYTES + _NODE_BYTES
    else:
        size = PAGE_BYTES // (_PAGE_ROOM_BYTES // node)
    return size + 2 * (2 * len(name) + 2 * SEQUENCE_BYTES + 2 * _NODE_BYTES)


class Shelf:
    """`max_bytes` bounds the file. Open it where nobody else is about to delete it."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.evicted = 0
        self._share = 1.0
        self._over: set[bytes] = set()
        self._batches = 0
        self._limit = 0
        self.max_bytes = max_bytes
        with faults():
            self._environment = lmdb.open(
                str(folder),
                map_size=max_bytes,
                max_dbs=len(TABLES),
                max_readers=_READERS,
                mode=0o600,
                metasync=False,  # the last answers may be lost with the machine, no more
                readahead=False,
                meminit=False,
            )
            try:
                opened = [self._environment.open_db(name) for name in TABLES]
                self._answers, self._names, self._by_tenant, self._totals = self._tables = opened
                self._page_bytes: int = self._environment.stat()["psize"]
                self._environment.reader_check()
            except BaseException:
                self._environment.close()
                raise

    def close(self) -> None:
        """Not while another thread reads."""
        self._environment.close()

    def limit(self, max_bytes: int, share: float) -> None:
        """Hold so much at most, as far as the file allows; what is too much goes with time."""
        self._limit = int(FILL * min(max_bytes, self.max_bytes))
        self._share = share
        self._batches = 0

    def get(self, name: bytes) -> bytes | None:
        """What was put there."""
        with faults(), self._environment.begin(buffers=True) as transaction:
            number = transaction.get(name, db=self._names)
            found = None if number is None else transaction.get(number, db=self._answers)
            if found is None:
                return None
            whose, kept = parted(found)
            return bytes(kept) if whose == name else None

    @property
    def used_bytes(self) -> int:
        """Of the file: pages that hold something."""
        with faults(), self._environment.begin() as transaction:
            return self.used_in(transaction)

    def used_in(self, transaction: lmdb.Transaction) -> int:
        pages = 0
        for table in self._tables:
            found = transaction.stat(table)
            pages += found["leaf_pages"] + found["branch_pages"] + found["overflow_pages"]
        return pages * self._page_bytes

    def held_by(self, tenant: bytes) -> int:
        """By `charge`."""
        with faults(), self._environment.begin() as transaction:
            return _number(transaction.get(tenant + b"\0", db=self._totals))

    def __len__(self) -> int:
        with faults(), self._environment.begin() as transaction:
            entries: int = transaction.stat(self._answers)["entries"]
            return entries

    def forget_readers(self) -> None:
        """Let go of what processes read that are dead."""
        with faults():
            self._environment.reader_check()

    def put(self, batch: Iterable[tuple[bytes, bytes]]) -> int:
        """All of it or nothing. `name` begins with the tenant and a zero byte. How many were
        kept: not those that are larger than their place."""
        with faults(), self._environment.begin(write=True) as transaction:
            writing = _Writing(self, transaction)
            kept = sum(writing.put(name, value) for name, value in batch)
            writing.shrink()
            writing.save()
        return kept

    def shrink(self, free_bytes: int = 0, most: int = _EVICTED_AT_ONCE) -> int:
        """Evict what is above the limit less `free_bytes`, `most` answers at once. How many
        went."""
        with faults(), self._environment.begin(write=True) as transaction:
            writing = _Writing(self, transaction)
            gone = writing.shrink(free_bytes, most)
            writing.save()
        return gone

    def make_room(self) -> None:
        """Evict an eighth of it, in transactions that need little room themselves."""
        free_bytes = self._limit - self.used_bytes * 7 // 8
        while self.shrink(free_bytes, 32) == 32:
            pass


class _Writing:
    """One transaction that writes."""

    def __init__(self, shelf: Shelf, transaction: lmdb.Transaction) -> None:
        self._shelf = shelf
        self._transaction = transaction
        self._totals: dict[bytes, int] = {}
        self._last = 0
        self._writer = b""
        cursor = transaction.cursor(shelf._answers)
        if cursor.last():
            self._last = _number(cursor.key())
        if shelf._batches % _LEARN_EVERY == 0:
            self._learn()
        shelf._batches += 1

    def put(self, name: bytes, value: bytes) -> bool:
        shelf, transaction = self._shelf, self._transaction
        size = charge(name, value)
        if size > shelf._limit // 8:
            return False
        old = transaction.get(name, db=shelf._names)
        if old is not None:
            self._remove(bytes(old))
        self._last += 1
        number, tenant = self._last.to_bytes(SEQUENCE_BYTES, "big"), _tenant(name)
        whole = len(name).to_bytes(LENGTH_BYTES, "big") + name + value
        transaction.put(number, whole, db=shelf._answers, append=True)
        transaction.put(name, number, db=shelf._names)
        transaction.put(tenant + number, b"", db=shelf._by_tenant)
        self._charge(tenant, size)
        self._writer = tenant
        self.shrink()
        return True

    def _remove(self, number: bytes) -> None:
        shelf, transaction = self._shelf, self._transaction
        found = transaction.pop(number, db=shelf._answers)
        if found is None:
            return
        name, kept = map(bytes, parted(found))
        tenant = _tenant(name)
        transaction.delete(name, db=shelf._names)
        transaction.delete(tenant + number, db=shelf._by_tenant)
        self._charge(tenant, -charge(name, kept))

    def shrink(self, free_bytes: int = 0, most: int = _EVICTED_AT_ONCE) -> int:
        gone = 0
        shelf, transaction = self._shelf, self._transaction
        while shelf.used_in(transaction) > shelf._limit - free_bytes and gone < most:
            if not self._evict():
                break
            gone += 1
        shelf.evicted += gone
        return gone

    def save(self) -> None:
        for tenant, total in self._totals.items():
            if total > 0:
                self._transaction.put(tenant, total.to_bytes(8, "big"), db=self._shelf._totals)
            else:
                self._transaction.delete(tenant, db=self._shelf._totals)

    def total(self, tenant: bytes) -> int:
        total = self._totals.get(tenant)
        if total is None:
            found = self._transaction.get(tenant, db=self._shelf._totals)
            total = self._totals[tenant] = _number(found)
        return total

    def _charge(self, tenant: bytes, size: int) -> None:
        self._totals[tenant] = max(0, self.total(tenant) + size)
        if self._totals[tenant] > self._shelf._share * self._shelf._limit:
            self._shelf._over.add(tenant)
        else:
            self._shelf._over.discard(tenant)

    def _evict(self) -> bool:
        """The oldest of whoever has to give way."""
        shelf, over = self._shelf, self._shelf._over
        tenant = b""
        if self._writer in over:
            tenant = self._writer
        elif over:
            tenant = max(over, key=self.total)
        cursor = self._transaction.cursor(shelf._by_tenant if tenant else shelf._answers)
        found = cursor.set_range(tenant) if tenant else cursor.first()
        place = bytes(cursor.key()) if found else b""
        if not found or not place.startswith(tenant):
            over.discard(tenant)
            return bool(tenant)  # else there is nothing
        self._remove(place[len(tenant) :])
        return True

    def _learn(self) -> None:
        """Who is above the share."""
        shelf = self._shelf
        fair = shelf._share * shelf._limit
        totals = self._transaction.cursor(shelf._totals)
        shelf._over = {bytes(tenant) for tenant, total in totals if _number(total) > fair}


def _tenant(name: bytes) -> bytes:
    """With the zero byte, which no tenant's name has."""
    return name[: name.index(b"\0") + 1]


def _number(data: bytes | memoryview | None) -> int:
    return 0 if data is None else int.from_bytes(data, "big")
