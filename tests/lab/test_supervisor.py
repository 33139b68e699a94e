"""Processes start, are noticed when they die, and none stays behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lab.errors import AddressBusy, ProcessDied
from lab.supervisor import Supervisor, require_free, session_members


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_stop_leaves_no_process_not_even_a_grandchild(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    child = await supervisor.start("shell", ["sh", "-c", "sleep 60 & sleep 60"])
    await supervisor.until("grandchild", lambda: len(session_members(child.pid)) == 3, 5)
    members = session_members(child.pid)
    await supervisor.stop(grace_s=2)
    assert not any(alive(pid) for pid in members)


async def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    child = await supervisor.start(
        "deaf", ["sh", "-c", "trap '' TERM; echo up; sleep 60; sleep 60"]
    )
    await supervisor.until("it to be deaf", lambda: "up" in child.log.read_text(), 5)
    await supervisor.stop(grace_s=0.3)
    assert not alive(child.pid)


async def test_a_death_is_reported_with_its_last_words(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    await supervisor.start("brief", ["sh", "-c", "echo the disk is on fire; exit 3"])
    with pytest.raises(ProcessDied, match=r"status 3(.|\n)*disk is on fire"):
        await supervisor.until("never", lambda: False, 5, "brief")


async def test_an_expected_death_is_not_an_error(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    child = await supervisor.start("sleeper", ["sleep", "60"])
    await supervisor.kill("sleeper")
    supervisor.check()
    assert child.process.returncode == -signal.SIGKILL


async def test_waiting_ends(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    await supervisor.start("sleeper", ["sleep", "60"])
    with pytest.raises(ProcessDied, match="not ready within"):
        await supervisor.until("the moon", lambda: False, 0.2, "sleeper")
    await supervisor.stop()


def test_children_fall_with_a_lab_that_is_killed(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import asyncio, pathlib
        from lab.supervisor import Supervisor
        async def main():
            child = await Supervisor(pathlib.Path({str(tmp_path)!r})).start("s", ["sleep", "60"])
            print(child.pid, flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
        """
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as lab:
        assert lab.stdout is not None
        child = int(lab.stdout.readline())
        assert alive(child)
        os.kill(lab.pid, signal.SIGKILL)
        lab.wait()
    deadline = time.monotonic() + 5
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)


def test_a_busy_address_is_named() -> None:
    with socket.socket() as held, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        held.bind(("127.0.0.1", 0))
        held.listen()
        udp.bind(("127.0.0.1", 0))
        busy = [
            ("127.0.0.1", held.getsockname()[1], socket.SOCK_STREAM),
            ("127.0.0.1", udp.getsockname()[1], socket.SOCK_DGRAM),
        ]
        with pytest.raises(AddressBusy) as caught:
            require_free(busy)
        assert f"{busy[0][1]}/tcp" in str(caught.value)
        assert f"{busy[1][1]}/udp" in str(caught.value)
    require_free(busy)


def test_many_busy_addresses_are_counted() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        busy = [("127.0.0.1", held.getsockname()[1], socket.SOCK_STREAM)] * 46
        with pytest.raises(AddressBusy, match="/tcp and 40 more"):
            require_free(busy)


async def test_output_is_kept_by_name(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    child = await supervisor.start("echo", ["sh", "-c", 'echo "$GREETING"'], GREETING="hello")
    await child.process.wait()
    await asyncio.sleep(0)
    assert (tmp_path / "logs" / "echo.log").read_text() == "hello\n"
