"""The control-plane replicas that are alive, by name and address, from keys under leases."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from random import Random

import msgspec
from msgspec import Struct

from control_plane import keys
from control_plane.store.base import Change, Entry, Put, Store
from control_plane.store.errors import LeaseLost, StoreUnavailable
from control_plane.store.following import follow
from runtime import logs
from runtime.backoff import Backoff
from runtime.clock import Clock

log = logs.get("replicas")

LEASE_TTL_S = 10.0
RENEW_S = LEASE_TTL_S / 4
RETRY_MIN_S, RETRY_MAX_S = 0.1, 2.0
REVOKE_S = 1.0


class _Registration(Struct, frozen=True):
    """What lies under a replica's key, as JSON."""

    address: str
    since_s: float = 0.0


class Replicas:
    """Registers this replica and knows the others.

    Use within one event loop: `start()`, read `alive`, `await close()`. `address` is where the
    others reach this replica, `host:port`. `on_change` callbacks run on the loop whenever `alive`
    became another one. While the store is away, `alive` stays as it was.
    """

    def __init__(self, store: Store, name: str, address: str, clock: Clock, rng: Random) -> None:
        self._store = store
        self._name = name
        self.address = address
        self._clock = clock
        self._rng = rng
        self._since_s = clock.wall()
        self._listeners: list[Callable[[], None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._lease = 0
        self._lost = asyncio.Event()  # our key is gone, whatever became of its lease
        self.alive: dict[str, str] = {}
        """name -> address of every registered replica, this one included. Never changed in place:
        each change is another dictionary."""

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._follow(), name="replicas-watch"),
            asyncio.create_task(self._register_forever(), name="replicas"),
        ]

    async def close(self) -> None:
        """The others hear at once that this replica has gone, if the store answers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        lease, self._lease = self._lease, 0
        if lease:
            with contextlib.suppress(StoreUnavailable, TimeoutError):
                async with asyncio.timeout(REVOKE_S):
                    await self._store.revoke(lease)

    async def _register_forever(self) -> None:
        backoff = Backoff(RETRY_MIN_S, RETRY_MAX_S, self._rng.random)
        while True:
            try:
                await self._register(backoff)
            except StoreUnavailable:
                pass  # the store's own log says so
            except LeaseLost:
                log.warning("registering again: the lease has ended", replica=self._name)
            except Exception:
                log.exception("the registry of replicas failed")
            await asyncio.sleep(backoff.next_s())

    async def _register(self, backoff: Backoff) -> None:
        """Put our key and keep it; returns, or raises `LeaseLost`, when it must be put again."""
        self._lost.clear()
        # One lease for all attempts: should an earlier one have been granted without our knowing,
        # it ends by itself and takes nothing along, as the key hangs on the later one.
        self._lease = self._lease or await self._store.grant(LEASE_TTL_S)
        value = msgspec.json.encode(_Registration(self.address, self._since_s))
        try:
            await self._store.transact([], [Put(keys.of_replica(self._name), value, self._lease)])
            log.info("registered", replica=self._name, address=self.address)
            while not self._lost.is_set():
                backoff.reset()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RENEW_S):
                        await self._lost.wait()
                        break
                await self._renew()
        except LeaseLost:
            self._lease = 0
            raise

    async def _renew(self) -> None:
        """Renew the lease, however long the store is away: it may have kept the lease."""
        pause = Backoff(RETRY_MIN_S, RETRY_MAX_S, self._rng.random)
        while True:
            try:
                await self._store.keep_alive(self._lease)
            except StoreUnavailable:
                await asyncio.sleep(pause.next_s())
            else:
                return

    async def _follow(self) -> None:
        await follow(
            self._store,
            keys.REPLICAS,
            lambda listing: self._publish(_addresses(listing.entries)),
            self._apply,
            self._rng,
        )

    def _apply(self, change: Change) -> None:
        gone = {key.removeprefix(keys.REPLICAS) for key in change.deletes}
        kept = {name: at for name, at in self.alive.items() if name not in gone}
        self._publish(kept | _addresses(change.puts))

    def _publish(self, alive: dict[str, str]) -> None:
        before, self.alive = self.alive, alive
        if self._name in before and self._name not in alive:
            self._lost.set()
        if alive == before:
            return
        log.info("replicas", alive=sorted(alive))
        if alive.get(self._name, self.address) != self.address:
            log.error("another replica has this one's name", address=alive[self._name])
        for listener in self._listeners:
            listener()


def _addresses(entries: tuple[Entry, ...]) -> dict[str, str]:
    """What somebody else wrote there and is no registration, is nobody."""
    found = {}
    for entry in entries:
        try:
            registration = msgspec.json.decode(entry.value, type=_Registration)
        except msgspec.MsgspecError:
            log.warning("not a replica's registration", key=entry.key)
            continue
        found[entry.key.removeprefix(keys.REPLICAS)] = registration.address
    return found
