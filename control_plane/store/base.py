"""The store's interface: a map from keys to bytes, in which every change has a revision.

Revisions are positive, count up for the whole store, and every transaction that changes
something takes exactly one. What a caller may rely on:

1. `get` and `list` are linearizable: they see every transaction that was acknowledged before
   they were called.
2. `transact` applies all of its operations or none, at one revision, and only if every guard
   holds at that moment.
3. `watch(prefix, after=n)` gives every change under `prefix` with a revision above `n`, in order,
   each revision whole, none twice and none left out, through reconnects. Where history no longer
   reaches back to `n`, it gives one `Relisted` instead and goes on from there.

4. A key put under a lease is removed, at a revision of its own, when the lease ends: revoked, or
   not kept alive for its time to live. Time does not pass for leases while the store is down; they
   may live longer than they should, never shorter.

The caller's duty: start a watch at the revision of the listing it builds on, and on `Relisted`
replace everything it holds under the prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from control_plane.store.errors import InvalidRequest

# etcd's defaults (--max-txn-ops, and --max-request-bytes of 1.5 MiB less room for the envelope).
# Both stores hold to them, so that what passes in a test passes in production.
MAX_OPERATIONS = 128
MAX_TRANSACTION_BYTES = 1_400_000
MAX_KEY_BYTES = 4096


class Entry(msgspec.Struct, frozen=True):
    """One key's value. `revision` is that of the transaction which last changed it."""

    key: str
    value: bytes
    revision: int
    lease: int = 0


class Listing(msgspec.Struct, frozen=True):
    """Everything under a prefix as it was at `revision`, sorted by key (as UTF-8 bytes)."""

    revision: int
    entries: tuple[Entry, ...]


class Put(msgspec.Struct, frozen=True, tag=True):
    """Set a key to a value. It goes when the lease `lease` ends; 0: it stays."""

    key: str
    value: bytes
    lease: int = 0


class Delete(msgspec.Struct, frozen=True, tag=True):
    """Remove a key. Where it does not exist, nothing happens."""

    key: str


Operation = Put | Delete


class Guard(msgspec.Struct, frozen=True):
    """A condition on a transaction: `key` is still at `revision`; 0 means it must not exist."""

    key: str
    revision: int


class Change(msgspec.Struct, frozen=True, tag=True):
    """Everything that one transaction changed under a prefix, whole."""

    revision: int
    puts: tuple[Entry, ...]
    deletes: tuple[str, ...]


class Relisted(msgspec.Struct, frozen=True, tag=True):
    """The watch could not go on from where it was; this is everything under its prefix now."""

    listing: Listing


class StoreStatus(msgspec.Struct, frozen=True):
    """Whether the store answers, since when (seconds of wall time), and a line for people."""

    available: bool
    since_s: float
    detail: str


class Watch(Protocol):
    """An endless iterator; it ends only when it, or its store, is closed.

    Cancelling a pending `anext` (with a timeout, say) loses nothing: the next one goes on where
    it was. One consumer at a time. Close it when done: `async with contextlib.aclosing(watch)`.
    """

    def __aiter__(self) -> Watch: ...

    async def __anext__(self) -> Change | Relisted: ...

    async def aclose(self) -> None: ...


class Store(Protocol):
    """See the module's text. Every call may raise `StoreUnavailable` or `InvalidRequest`."""

    @property
    def status(self) -> StoreStatus: ...

    async def get(self, key: str) -> Entry | None:
        """The key's entry now, or nothing."""
        ...

    async def list(self, prefix: str) -> Listing:
        """Every key that begins with `prefix`, all at one revision. The empty prefix is all."""
        ...

    def watch(self, prefix: str, after: int) -> Watch:
        """Changes under `prefix` with a revision above `after`. Connects when first awaited."""
        ...

    async def transact(self, guards: Sequence[Guard], operations: Sequence[Operation]) -> int:
        """Apply all operations if all guards hold, else raise `Conflict`.

        Returns the revision of the change, or the store's current one if nothing changed (only
        guards, or deletes of what did not exist). After `StoreUnavailable` with `ambiguous`, and
        after being cancelled, it may or may not have been applied; never in part.
        """
        ...

    async def grant(self, ttl_s: float) -> int:
        """A new lease, which ends when it is not kept alive for `ttl_s` (at least 1; etcd counts
        whole seconds and rounds up). Puts under a lease that has ended raise `LeaseLost`."""
        ...

    async def keep_alive(self, lease: int) -> float:
        """Renew a lease; returns how long it now lasts, in seconds. Raises `LeaseLost`."""
        ...

    async def revoke(self, lease: int) -> None:
        """End a lease and remove its keys. One that has ended already is no error."""
        ...

    async def close(self) -> None:
        """Give back connections and tasks; pending calls and watches end."""
        ...


def check_key(key: str) -> None:
    """Raise `InvalidRequest` unless `key` can be one."""
    problems = _key_problems(key)
    if problems:
        raise InvalidRequest(problems)


def check_watch(prefix: str, after: int) -> None:
    """Raise `InvalidRequest` unless a watch can begin so."""
    problems = _key_problems(prefix) if prefix else ()
    if after < 0:
        problems += (f"a watch cannot begin after revision {after}",)
    if problems:
        raise InvalidRequest(problems)


def check_transaction(guards: Sequence[Guard], operations: Sequence[Operation]) -> None:
    """Raise `InvalidRequest`, naming every mistake, unless a store can carry this out."""
    problems: list[str] = []
    if not guards and not operations:
        problems.append("a transaction needs a guard or an operation")
    for what, items in (("guards", guards), ("operations", operations)):
        if len(items) > MAX_OPERATIONS:
            problems.append(f"{len(items)} {what} in one transaction; at most {MAX_OPERATIONS}")
        problems += _repeated(what, [item.key for item in items])
        for item in items:
            problems += _key_problems(item.key)
    problems += [
        f"a guard cannot ask for revision {guard.revision} of {guard.key}"
        for guard in guards
        if not 0 <= guard.revision < 2**63
    ]
    size = _size(guards, operations)
    if not problems and size > MAX_TRANSACTION_BYTES:
        problems.append(f"a transaction of {size} bytes; at most {MAX_TRANSACTION_BYTES}")
    if problems:
        raise InvalidRequest(tuple(problems))


def check_ttl(ttl_s: float) -> None:
    """Raise `InvalidRequest` unless a lease can last so long."""
    if not 1.0 <= ttl_s <= 86_400.0:
        raise InvalidRequest((f"a lease of {ttl_s} s; from 1 s to a day",))


def encode_key(key: str) -> bytes:
    """A key on the wire: UTF-8. Bytes that others wrote and that are not, survive the trip."""
    return key.encode("utf-8", "surrogateescape")


def decode_key(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


def _size(guards: Sequence[Guard], operations: Sequence[Operation]) -> int:
    keys = sum(4 * len(item.key) + 32 for items in (guards, operations) for item in items)
    # A guard's key travels twice: in the comparison, and in the read that names what differed.
    keys += sum(4 * len(guard.key) + 32 for guard in guards)
    return keys + sum(len(item.value) for item in operations if isinstance(item, Put))


def _repeated(what: str, keys: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    twice = {key for key in keys if key in seen or seen.add(key)}  # type: ignore[func-returns-value]
    return [f"{_short(key)} twice among the {what}" for key in sorted(twice)]


def _key_problems(key: str) -> tuple[str, ...]:
    if not key:
        return ("a key cannot be empty",)
    try:
        size = len(encode_key(key))
    except UnicodeEncodeError:
        return (f"the key {_short(key)} is not text",)
    if "\0" in key:
        return (f"the key {_short(key)} has a NUL in it",)
    if size > MAX_KEY_BYTES:
        return (f"a key of {size} bytes, {_short(key)}; at most {MAX_KEY_BYTES}",)
    return ()


def _short(key: str) -> str:
    return ascii(key if len(key) <= 60 else key[:59] + "…")
