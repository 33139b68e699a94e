"""Membership under leases in the store: the default.

A member is an entry under `keys.MEMBERS` that goes when its lease does. Every replica follows the
entries by a watch, so all of them know all members, and the members last seen stay while the
store is away. A lease belongs to the node: whichever replica the node talks to keeps it alive.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from random import Random
from types import MappingProxyType

import msgspec

from control_plane import keys
from control_plane.directives.observed import Member
from control_plane.membership.base import Listener
from control_plane.membership.errors import MemberLost, RegistryUnavailable
from control_plane.store.base import (
    Change,
    Delete,
    Entry,
    Guard,
    Listing,
    Put,
    Store,
    StoreStatus,
)
from control_plane.store.errors import Conflict, LeaseLost, StoreUnavailable
from control_plane.store.following import follow
from runtime import logs
from runtime.clock import Clock

log = logs.get("membership")


class LeaseRegistry:
    """See `control_plane.membership.base.Registry`. In memory, it is one over a `MemoryStore`."""

    backend = "leases"

    def __init__(self, store: Store, clock: Clock, rng: Random, ttl_s: float = 15.0) -> None:
        self._store = store
        self._ttl_s = ttl_s
        self._rng = rng
        self._entries: dict[str, Entry] = {}  # node -> what the store holds of it
        self._members: dict[str, Member] = {}
        self._members_view = MappingProxyType(self._members)
        self._listed = False
        self._followed = 0  # the revision up to which the watch has told everything
        self._unlisted = StoreStatus(False, clock.wall(), "the members have not been read yet")
        self._listeners: list[Listener] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def ttl_s(self) -> float:
        return self._ttl_s

    @property
    def members(self) -> Mapping[str, Member]:
        return self._members_view

    @property
    def status(self) -> StoreStatus:
        return self._store.status if self._listed else self._unlisted

    def on_change(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def start(self) -> None:
        self._task = asyncio.create_task(self._follow(), name="members")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def register(self, member: Member, lease: int = 0) -> int:
        key, value = keys.of_member(member.node), msgspec.json.encode(member)
        try:
            # A node may show any number: only the lease that its own entry has is its own.
            if lease and await self._lease_of(key) == lease:
                with contextlib.suppress(LeaseLost):
                    await self._put(key, value, lease)
                    return lease
            lease = await self._store.grant(self._ttl_s)
            await self._put(key, value, lease)
        except (StoreUnavailable, LeaseLost) as error:
            raise RegistryUnavailable(str(error)) from error
        return lease

    async def renew(self, member: Member, lease: int) -> None:
        held = self._entries.get(member.node)
        if held is None or held.lease != lease or member.node not in self._members:
            raise MemberLost(f"{member.node} is not in the store under lease {lease:x}")
        try:
            await self._store.keep_alive(lease)
        except LeaseLost as error:
            raise MemberLost(str(error)) from error
        except StoreUnavailable as error:
            raise RegistryUnavailable(str(error)) from error

    async def forget(self, member: Member, lease: int) -> None:
        key = keys.of_member(member.node)
        try:
            entry = await self._store.get(key)
            if entry is None or _incarnation(entry) != member.incarnation:
                return
            with contextlib.suppress(Conflict):  # another incarnation came in between
                await self._store.transact([Guard(key, entry.revision)], [Delete(key)])
            if lease and entry.lease == lease:
                await self._store.revoke(lease)
        except StoreUnavailable as error:
            raise RegistryUnavailable(str(error)) from error

    async def _lease_of(self, key: str) -> int:
        entry = await self._store.get(key)
        return entry.lease if entry is not None else 0

    async def _put(self, key: str, value: bytes, lease: int) -> None:
        revision = await self._store.transact([], [Put(key, value, lease)])
        if revision > self._followed:  # else the watch was quicker, and may know of its end
            self._take([Entry(key, value, revision, lease)], ())

    async def _follow(self) -> None:
        await follow(
            self._store,
            keys.MEMBERS,
            self._relist,
            self._apply,
            self._rng,
        )

    def _relist(self, listing: Listing) -> None:
        self._entries.clear()
        self._members.clear()
        self._listed = True
        self._followed = listing.revision
        self._take(listing.entries, ())

    def _apply(self, change: Change) -> None:
        self._followed = change.revision
        self._take(change.puts, change.deletes, change.revision)

    def _take(self, puts: Iterable[Entry], deletes: Iterable[str], revision: int = 0) -> None:
        """Entries come from the watch, and from this replica's own writes before it."""
        for entry in puts:
            node = entry.key.removeprefix(keys.MEMBERS)
            held = self._entries.get(node)
            if held is None or held.revision < entry.revision:
                self._entries[node] = entry
                self._decode(node, entry)
        for key in deletes:
            node = key.removeprefix(keys.MEMBERS)
            held = self._entries.get(node)
            if held is not None and held.revision < revision:
                del self._entries[node]
                self._members.pop(node, None)
        for listener in self._listeners:
            listener()

    def _decode(self, node: str, entry: Entry) -> None:
        try:
            member = msgspec.json.decode(entry.value, type=Member)
            if member.node == node:
                self._members[node] = member
                return
            reason = f"it is of {member.node[:100]!r}"
        except msgspec.MsgspecError as error:
            reason = str(error)
        # Somebody else wrote it. The node itself writes over it when it is renewed.
        log.error("an entry is no member", key=entry.key[:200], reason=reason)
        self._members.pop(node, None)


def _incarnation(entry: Entry) -> str | None:
    try:
        return msgspec.json.decode(entry.value, type=Member).incarnation
    except msgspec.MsgspecError:
        return None
