"""Identities that are renewed while we run, and files that cannot be used."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from control_plane.pki import create_ca, identity_files, issue
from runtime.clock import ManualClock, SystemClock
from runtime.identity import Identity, IdentityError, Principal
from runtime.identity_watch import IdentityWatch

EDGE = Principal("edge", "tokyo")
DAY_S = 86_400.0


class Folder:
    """A CA and one identity."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = identity_files(path / "id")
        create_ca(path / "ca")
        self.renew()

    def renew(self, principal: Principal = EDGE, ca: str = "ca", days: int = 30) -> None:
        if not (self.path / ca).exists():
            create_ca(self.path / ca)
        issue(self.path / ca, principal, self.path / "id", days=days)

    def load(self) -> Identity:
        return Identity.load(self.files)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


async def test_a_renewed_identity_is_taken_up_and_told(folder: Folder) -> None:
    watch = IdentityWatch(folder.load(), SystemClock(), poll_s=0.02)
    told: list[Identity] = []
    watch.on_change(told.append)
    first = watch.current
    watch.start()
    await asyncio.sleep(0.1)
    assert told == []
    folder.renew()
    async with asyncio.timeout(5):
        while not told:
            await asyncio.sleep(0.01)
    await watch.close()
    assert first.newest is watch.current is told[0]
    assert first.newest.certificate_pem == folder.files.certificate.read_bytes()
    assert first.newest.newest is first.newest
    assert watch.renewals == 1


@pytest.mark.parametrize("which", ["certificate", "key", "ca"])
async def test_half_written_files_are_waited_for(folder: Folder, which: str) -> None:
    watch = IdentityWatch(folder.load(), SystemClock())
    await watch.look()
    held = watch.current
    path = getattr(folder.files, which)
    old = path.read_bytes()
    folder.renew(ca="other")
    new = path.read_bytes()
    for half in (old, b"", new[: len(new) // 2], b"-----BEGIN nonsense", None):
        if half is None:
            path.unlink()
        else:
            path.write_bytes(half)
        for _ in range(2):
            await watch.look()
        assert watch.current is held, half
        assert str(path) in watch.problem
    path.write_bytes(new)
    await watch.look()
    assert watch.current.newest is not held
    assert watch.problem == ""


async def test_another_principal_is_not_taken_up(folder: Folder) -> None:
    watch = IdentityWatch(folder.load(), SystemClock())
    for other in (Principal("edge", "london"), Principal("core", "tokyo")):
        folder.renew(other)
        for _ in range(2):
            await watch.look()
        assert watch.current.principal == EDGE
        assert f"is for {other} now" in watch.problem
    found = {s.name: s.value for s in watch.samples()}
    assert found["tradewind_identity_refused"] == 1


async def test_a_problem_is_told_when_it_lasts(folder: Folder) -> None:
    watch = IdentityWatch(folder.load(), SystemClock())
    shutil.move(folder.files.key, folder.path / "aside")
    await watch.look()
    assert watch.problem == ""  # a file may be missing for a moment while it is replaced
    await watch.look()
    assert "key.pem" in watch.problem


async def test_certificates_out_of_date(folder: Folder) -> None:
    clock = ManualClock(wall=SystemClock().wall())
    watch = IdentityWatch(folder.load(), clock)
    clock.advance(40 * DAY_S)
    left_s = {s.name: s.value for s in watch.samples()}["tradewind_identity_expires_seconds"]
    assert left_s == pytest.approx(-10 * DAY_S, abs=60)
    held = watch.current
    folder.renew(days=20)  # by a clock that is far behind: out of date already
    for _ in range(2):
        await watch.look()
        clock.advance(2.0)
    assert watch.current is held
    assert "is valid from" in watch.problem
    folder.renew(days=60)
    await watch.look()
    assert watch.current is not held


async def test_a_callback_that_fails_keeps_nobody_from_the_rest(folder: Folder) -> None:
    watch = IdentityWatch(folder.load(), SystemClock())
    told: list[Identity] = []

    def broken(_: Identity) -> None:
        raise IdentityError("cannot be used")

    watch.on_change(broken)
    watch.on_change(told.append)
    folder.renew()
    await watch.look()
    assert len(told) == 1


def test_what_makes_an_identity_unusable(folder: Folder) -> None:
    now_s = SystemClock().wall()
    good = folder.load()
    good.check(now_s)
    with pytest.raises(IdentityError, match="is valid from"):
        good.check(now_s + 31 * DAY_S)
    with pytest.raises(IdentityError, match="is valid from"):
        good.check(now_s - DAY_S)
    folder.files.ca.write_bytes(b"nonsense")
    with pytest.raises(IdentityError, match="holds no PEM"):
        folder.load().check(now_s)


def test_a_key_is_never_shown(folder: Folder) -> None:
    assert "PRIVATE" not in repr(folder.load())
    assert "edge/tokyo" in repr(folder.load())
