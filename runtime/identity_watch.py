"""Notices that an identity's files were renewed, and hands the new one on while we run.

Files are looked at every few seconds. What they hold replaces the identity in use only when it
is whole and speaks for the same principal; until then the old one stays, and it is said why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TypeAlias

import msgspec

from runtime import logs
from runtime.clock import Clock
from runtime.identity import Identity, IdentityError, IdentityFiles
from runtime.metrics import Sample

log = logs.get("identity")

POLL_S = 2.0
# The last part of a certificate's life, in which it should have been renewed already.
_LATE_SHARE = 0.2
_REMIND_S = 6 * 3600.0

_Stamp: TypeAlias = tuple[tuple[int, int, int], ...]


class WrongPrincipal(IdentityError):
    """The new certificate speaks for somebody else."""


class IdentityWatch:
    """Keeps one identity up to date: `start()` in a running loop, `await close()`.

    `current` is the identity to use; it carries this watch, so that whoever keeps it finds the
    `newest`. `on_change` callbacks run on the loop, in the order in which they were added.
    """

    def __init__(self, identity: Identity, clock: Clock, poll_s: float = POLL_S) -> None:
        self._clock = clock
        self._poll_s = poll_s
        self._listeners: list[Callable[[Identity], None]] = []
        self._task: asyncio.Task[None] | None = None
        self._stamp: _Stamp | None = None  # of the files as they were taken up
        self._seen_before = ""
        self._reminded_s = float("-inf")
        self.problem = ""  # why the files on disk are not used; empty: they are
        self.renewals = 0
        self.current = msgspec.structs.replace(identity, watch=self)
        self._expires_s = identity.leaf().not_valid_after_utc.timestamp()
        self._began_s = identity.leaf().not_valid_before_utc.timestamp()

    def on_change(self, listener: Callable[[Identity], None]) -> None:
        self._listeners.append(listener)

    def start(self) -> None:
        self._task = asyncio.create_task(self._look_forever(), name="identity")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> None:
        """Look at the files once, and take up what they hold if it is another identity."""
        try:
            found = await asyncio.to_thread(self._read)
        except IdentityError as error:
            self._complain(str(error))
            return
        if self.problem:
            log.info("the identity's files are in order again")
        self.problem = self._seen_before = ""
        if found is not None:
            self._take_up(found)

    def samples(self) -> Iterable[Sample]:
        name = "tradewind_identity_"
        left_s = self._expires_s - self._clock.wall()
        yield Sample(name + "expires_seconds", "Until the certificate is out of date.", left_s)
        yield Sample(name + "renewals_total", "Times it was renewed.", self.renewals)
        text = "Whether what lies on disk cannot be used."
        yield Sample(name + "refused", text, bool(self.problem))

    async def _look_forever(self) -> None:
        while True:
            try:
                await self.look()
                self._remind()
            except Exception:  # the task's outermost edge: the identity in use stays
                log.exception("looking at the identity's files failed")
            await asyncio.sleep(self._poll_s)

    def _read(self) -> Identity | None:
        """What the files hold, checked; None: nothing new. In a thread: disks may hang."""
        held = self.current
        stamp = _stamp(held.files)
        if stamp == self._stamp:
            return None
        found = Identity.load(held.files)
        if _contents(found) != _contents(held):
            if found.principal != held.principal:
                raise WrongPrincipal(
                    f"{held.files.certificate} is for {found.principal} now, and this process is"
                    f" {held.principal}",
                    hint="start the process again if that is meant",
                )
            found.check(self._clock.wall())
        if _stamp(held.files) != stamp:
            raise IdentityError("the identity's files are being written")
        self._stamp = stamp
        return found if _contents(found) != _contents(held) else None

    def _take_up(self, found: Identity) -> None:
        self.current = msgspec.structs.replace(found, watch=self)
        leaf = found.leaf()
        self._expires_s = leaf.not_valid_after_utc.timestamp()
        self._began_s = leaf.not_valid_before_utc.timestamp()
        self._reminded_s = float("-inf")
        self.renewals += 1
        log.info(
            "identity renewed",
            principal=str(found.principal),
            expires=leaf.not_valid_after_utc.isoformat(),
        )
        for listener in self._listeners:
            try:
                listener(self.current)
            except IdentityError as error:
                log.error("the renewed identity could not be used", reason=str(error))

    def _complain(self, reason: str) -> None:
        """Said once, and only when it is still so at the next look: files are written one by
        one."""
        if reason == self._seen_before and reason != self.problem:
            log.error("the identity's files are not used; the old one stays", reason=reason)
            self.problem = reason
        self._seen_before = reason

    def _remind(self) -> None:
        now_s = self._clock.wall()
        left_s = self._expires_s - now_s
        if left_s > _LATE_SHARE * (self._expires_s - self._began_s):
            return
        if self._clock.now() - self._reminded_s < _REMIND_S:
            return
        self._reminded_s = self._clock.now()
        told = log.error if left_s <= 0 else log.warning
        told(
            "the certificate has expired" if left_s <= 0 else "the certificate expires soon",
            principal=str(self.current.principal),
            days_left=round(left_s / 86_400, 1),
            hint="`tradewind pki rotate` renews it; open connections last until they break",
        )


def _stamp(files: IdentityFiles) -> _Stamp:
    """Changes whenever a file does, or is replaced."""
    found = []
    for path in (files.certificate, files.key, files.ca):
        try:
            stat = path.stat()
        except OSError as error:
            raise IdentityError(f"cannot read {path}: {error.strerror}") from error
        found.append((stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))
    return tuple(found)


def _contents(identity: Identity) -> tuple[bytes, bytes, bytes]:
    return identity.certificate_pem, identity.key_pem, identity.ca_pem
