"""The store on etcd, over its generated stubs and grpc.aio (docs/decisions/0002-etcd-client.md)."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Sequence
from random import Random
from typing import Any

from etcd3 import etcdrpc

from control_plane.store.base import (
    Delete,
    Entry,
    Guard,
    Listing,
    Operation,
    Put,
    StoreStatus,
    check_key,
    check_transaction,
    check_ttl,
    check_watch,
    decode_key,
    encode_key,
)
from control_plane.store.errors import (
    Conflict,
    LeaseLost,
    StoreClosed,
    StoreRefused,
    StoreUnavailable,
)
from control_plane.store.etcd_failures import Kind, MemberFailed
from control_plane.store.etcd_members import Members
from control_plane.store.etcd_watch import EtcdWatch, range_of
from control_plane.store.health import Health
from control_plane.store.settings import EtcdSettings, addresses
from runtime.clock import Clock

__all__ = ["EtcdSettings", "EtcdStore"]

_PAGE_ENTRIES = 500
_LISTING_ATTEMPTS = 5


class EtcdStore:
    """See `control_plane.store.base`. Connects when first used; use it from one event loop.

    Raises `runtime.validation.InvalidDocument`, with every mistake, for settings that are wrong.
    `clock` tells the wall time of `status`; `rng` draws the order of members and the pauses.
    """

    def __init__(self, settings: EtcdSettings, clock: Clock, rng: Random) -> None:
        self._settings = settings
        members = addresses(settings)
        self._health = Health(clock, f"not contacted yet: etcd at {', '.join(members)}")
        self._members = Members(members, settings, self._health, rng)
        self._watches: set[EtcdWatch] = set()
        self._closed = False

    @property
    def status(self) -> StoreStatus:
        return self._health.status

    async def get(self, key: str) -> Entry | None:
        check_key(key)
        try:
            answer = await self._range(etcdrpc.RangeRequest(key=encode_key(key)))
        except MemberFailed as error:  # an entry that somebody else wrote, larger than we accept
            raise StoreRefused(f"etcd: {key}: {error.failure.detail}") from error
        return _entry(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str) -> Listing:
        check_watch(prefix, 0)
        limit = _PAGE_ENTRIES
        for _ in range(_LISTING_ATTEMPTS):
            try:
                return await self._list(prefix, limit)
            except MemberFailed as error:
                if error.failure.kind is Kind.TOO_LARGE:
                    limit = max(1, limit // 20)
                # Else it was compacted between two pages: begin again, at the latest revision.
                failure = error.failure
        raise StoreUnavailable(f"listing {prefix} failed again and again: {failure.detail}")

    def watch(self, prefix: str, after: int) -> EtcdWatch:
        check_watch(prefix, after)
        self._check_open()
        watch = EtcdWatch(
            self._members, self._settings, prefix, after, self.list, self._watches.discard
        )
        self._watches.add(watch)
        return watch

    async def transact(self, guards: Sequence[Guard], operations: Sequence[Operation]) -> int:
        check_transaction(guards, operations)
        self._check_open()
        try:
            answer = await self._members.write("Txn", _transaction(guards, operations))
        except MemberFailed as error:  # etcd does not say which lease, where there are several
            leases = (op.lease for op in operations if isinstance(op, Put) and op.lease)
            raise LeaseLost(next(leases, 0)) from error
        if not answer.succeeded:
            raise _conflict(guards, answer)
        return int(answer.header.revision)

    async def grant(self, ttl_s: float) -> int:
        check_ttl(ttl_s)
        self._check_open()
        # Granted twice, by two members, one of the two just ends.
        request = etcdrpc.LeaseGrantRequest(TTL=math.ceil(ttl_s))
        return int((await self._members.read("LeaseGrant", request)).ID)

    async def keep_alive(self, lease: int) -> float:
        self._check_open()
        request = etcdrpc.LeaseKeepAliveRequest(ID=lease)
        answer = await self._lease_call("LeaseKeepAlive", request, lease)
        if answer.TTL <= 0:
            raise LeaseLost(lease)
        return float(answer.TTL)

    async def revoke(self, lease: int) -> None:
        self._check_open()
        request = etcdrpc.LeaseRevokeRequest(ID=lease)
        with contextlib.suppress(LeaseLost):
            await self._lease_call("LeaseRevoke", request, lease)

    async def close(self) -> None:
        self._closed = True
        await asyncio.gather(*(watch.aclose() for watch in tuple(self._watches)))
        await self._members.close()

    async def _lease_call(self, method: str, request: Any, lease: int) -> Any:
        try:
            return await self._members.read(method, request)
        except MemberFailed as error:
            raise LeaseLost(lease) from error

    async def _list(self, prefix: str, limit: int) -> Listing:
        start, end = range_of(prefix)
        entries: list[Entry] = []
        revision = 0
        while True:
            page = await self._range(
                etcdrpc.RangeRequest(key=start, range_end=end, limit=limit, revision=revision)
            )
            # Later pages show the same revision as the first.
            revision = revision or page.header.revision
            entries += map(_entry, page.kvs)
            if not page.more:
                return Listing(int(revision), tuple(entries))
            start = page.kvs[-1].key + b"\0"

    async def _range(self, request: Any) -> Any:
        self._check_open()
        return await self._members.read("Range", request)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed("the store is closed")


def _entry(kv: Any) -> Entry:
    return Entry(decode_key(kv.key), kv.value, kv.mod_revision, kv.lease)


def _transaction(guards: Sequence[Guard], operations: Sequence[Operation]) -> Any:
    compare = [
        etcdrpc.Compare(
            result=etcdrpc.Compare.EQUAL,
            target=etcdrpc.Compare.MOD,
            key=encode_key(guard.key),
            mod_revision=guard.revision,
        )
        for guard in guards
    ]
    # If a guard fails, read all guarded keys in the same transaction, to say which differed.
    failure = [
        etcdrpc.RequestOp(
            request_range=etcdrpc.RangeRequest(key=encode_key(guard.key), keys_only=True)
        )
        for guard in guards
    ]
    success = [_operation(operation) for operation in operations]
    return etcdrpc.TxnRequest(compare=compare, success=success, failure=failure)


def _operation(operation: Operation) -> Any:
    key = encode_key(operation.key)
    match operation:
        case Put():
            return etcdrpc.RequestOp(
                request_put=etcdrpc.PutRequest(
                    key=key, value=operation.value, lease=operation.lease
                )
            )
        case Delete():
            return etcdrpc.RequestOp(request_delete_range=etcdrpc.DeleteRangeRequest(key=key))


def _conflict(guards: Sequence[Guard], answer: Any) -> Conflict:
    expected = {guard.key: guard.revision for guard in guards}
    found = {}
    for guard, response in zip(guards, answer.responses, strict=True):
        kvs = response.response_range.kvs
        revision = kvs[0].mod_revision if kvs else 0
        if revision != guard.revision:
            found[guard.key] = int(revision)
    return Conflict(found, expected)
