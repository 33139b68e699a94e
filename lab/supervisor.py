"""Start the lab's processes, watch them, and leave none behind.

Each process leads a session of its own, so that Ctrl-C reaches the lab alone, which then stops
them in reverse order. Should the lab itself be killed, the kernel kills its children
(PR_SET_PDEATHSIG); what those started is in their session and falls with it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lab.errors import AddressBusy, LabError, ProcessDied

# Runs in the child before the command does, and not as `preexec_fn`, which would fork this process
# with gRPC's threads in it: its fork handlers abort the child at times. PR_SET_PDEATHSIG (prctl(2),
# number 1) outlives exec; the second check closes the gap in which the parent died before the
# request was made.
_DIE_WITH_PARENT = """
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""
_NAMED = 6  # of the addresses that are taken
_LAST_LINES = 15
_REAP_CHECKS = 100  # the kernel needs a moment to end what was killed


class Child:
    """One running process and the file that its output goes to."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        process: asyncio.subprocess.Process,
        log: Path,
    ) -> None:
        self.name = name
        self.command = tuple(command)
        self.process = process
        self.log = log
        self.expected_to_die = False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.returncode is None

    def memory_mb(self) -> float:
        """Resident memory of the process and those it started, in MB; 0 once it is gone."""
        return resident_mb(session_members(self.pid))


class Supervisor:
    """Starts processes and stops them all, last started first."""

    def __init__(self, directory: Path) -> None:
        self.logs = directory / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.children: dict[str, Child] = {}

    async def start(self, name: str, command: Sequence[str], **environment: str) -> Child:
        """Start `command` as `name`; its output goes to `logs/<name>.log`."""
        log = self.logs / f"{name}.log"
        with log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                *dying_with_parent(command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=asyncio.subprocess.STDOUT,
                env=os.environ | environment,
                start_new_session=True,
            )
        child = self.children[name] = Child(name, command, process, log)
        return child

    async def until(
        self, what: str, ready: Callable[[], object], timeout_s: float, *names: str
    ) -> None:
        """Wait until `ready()` (may be a coroutine function) is true; fail at once when one of
        the processes `names` ends."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while True:
            self.check(*names)
            answer = ready()
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer:
                return
            if loop.time() > end:
                raise ProcessDied(
                    f"{what} was not ready within {timeout_s:.0f} s\n{self._tails(names)}"
                )
            await asyncio.sleep(0.05)

    def check(self, *names: str) -> None:
        """Raise when one of the processes (all, if none is named) ended unasked."""
        for name in names or tuple(self.children):
            child = self.children[name]
            if not child.running and not child.expected_to_die:
                code = child.process.returncode
                raise ProcessDied(f"{name} ended with status {code}\n{self._tails([name])}")

    async def again(self, name: str) -> None:
        """Start a process that has ended once more, with the command that it had."""
        child = self.child(name)
        if child.running:
            raise LabError(f"{name} is running already (process {child.pid})")
        await self.start(name, child.command)

    def child(self, name: str) -> Child:
        """The process of that name, or `LabError` listing those there are."""
        if name not in self.children:
            raise LabError(f"no process {name!r}", hint="there are: " + ", ".join(self.children))
        return self.children[name]

    async def kill(self, name: str) -> None:
        """SIGKILL, as a crash or a power cut would."""
        child = self.child(name)
        child.expected_to_die = True
        _send(signal.SIGKILL, session_members(child.pid))
        await child.process.wait()

    async def stop(self, grace_s: float = 5.0) -> None:
        """SIGTERM to all, last started first; SIGKILL to what is left after `grace_s`."""
        running = [child for child in reversed(self.children.values()) if child.running]
        for child in running:
            child.expected_to_die = True
            child.process.send_signal(signal.SIGTERM)
        waits = [asyncio.create_task(child.process.wait()) for child in running]
        if waits:
            await asyncio.wait(waits, timeout=grace_s)
        left = [pid for child in self.children.values() for pid in session_members(child.pid)]
        _send(signal.SIGKILL, left)
        if waits:
            await asyncio.wait(waits)
        for _ in range(_REAP_CHECKS):
            if not any(session_members(child.pid) for child in self.children.values()):
                return
            await asyncio.sleep(0.02)

    def _tails(self, names: Sequence[str]) -> str:
        parts = []
        for name in names:
            log = self.children[name].log
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            parts.append(f"last lines of {log}:")
            parts += [f"  {line}" for line in lines[-_LAST_LINES:]]
        return "\n".join(parts)


def dying_with_parent(command: Sequence[str]) -> list[str]:
    """A command line that becomes `command`, and is killed when the calling process ends."""
    return [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]


def require_free(addresses: Sequence[tuple[str, int, int]]) -> None:
    """Raise `AddressBusy` naming every (host, port, socket type) that something else holds."""
    busy = []
    for host, port, kind in addresses:
        with socket.socket(socket.AF_INET, kind) as probe:
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                busy.append(f"{host}:{port}/{'tcp' if kind == socket.SOCK_STREAM else 'udp'}")
    if busy:
        more = f" and {len(busy) - _NAMED} more" if len(busy) > _NAMED else ""
        raise AddressBusy(
            f"in use already: {', '.join(busy[:_NAMED])}{more}",
            hint="Is another lab running? Stop it (Ctrl-C there) and start this one again.",
        )


def session_members(leader: int) -> list[int]:
    """The live processes of the session that `leader` leads (or led: it may be gone)."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended while we looked
            if int(fields[3]) == leader and fields[0] != "Z":
                members.append(int(entry.name))
    return members


def resident_mb(pids: Sequence[int]) -> float:
    """Resident memory of processes together, in MB; those that are gone count as nothing."""
    return round(sum(_resident_kb(pid) for pid in pids) / 1024, 1)


def _resident_kb(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    except OSError:
        return 0  # it ended while we looked
    return 0


def _send(number: int, pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # it ended by itself first
