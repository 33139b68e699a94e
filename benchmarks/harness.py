"""What every benchmark here shares: peers, processes, CPU accounting, turns, ratios.

A benchmark starts ours and its peers, lets each do the same work in turn several times, and
reports medians, their spread, and ratios (ours / peer; above 1 is better). It says when the
load generator rather than the server was the limit, since such a figure says nothing.

    sides = {"ours": run_ours, "gdnsd": run_gdnsd}          # each returns a Sample
    report = Report("dns", unit="queries/s")
    report.add("one subnet", take_turns(sides, runs=5))
    report.finish(json_path)

Peers live outside our environment: Python ones in `.bench/<name>` (`ensure_venv`), Debian ones
installed by apt without their services (`ensure_debian`). Their configuration and logs are
written to `.bench/` too.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / ".bench"
OURS = "ours"

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_QUIET = 0.1  # cores that others may use before the report says so
_BUSY = 0.95  # a process above this share of its cores has no more to give


class Unavailable(Exception):
    """A peer cannot be had on this machine; the text says why and what would help."""


# --- Peers ---------------------------------------------------------------------------------


def ensure_venv(name: str, packages: Sequence[str], python: str = sys.executable) -> Path:
    """The `bin` folder of `.bench/<name>`, an environment that holds `packages` (pip's words)."""
    folder = BENCH / name
    stamp = folder / ".packages"
    wanted = "\n".join(packages)
    if stamp.exists() and stamp.read_text() == wanted:
        return folder / "bin"
    say(f"installing {', '.join(packages)} in {folder.relative_to(ROOT)}")
    BENCH.mkdir(exist_ok=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    for command in ([python, "-m", "venv", str(folder)], [*pip, *packages]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"{name}: {' '.join(command)} failed: {_last_line(done.stderr)}")
    stamp.write_text(wanted)
    return folder / "bin"


def ensure_debian(packages: Sequence[str]) -> None:
    """Install Debian packages that are missing, without starting their services."""
    missing = [package for package in packages if not _is_installed(package)]
    if not missing:
        return
    command = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *missing]
    if os.geteuid() != 0:
        raise Unavailable(f"needs {', '.join(missing)}: run as root: {' '.join(command)}")
    say(f"installing {', '.join(missing)} with apt-get (services are not started)")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with _no_services():
        subprocess.run(["apt-get", "update", "--quiet"], capture_output=True, env=environment)
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise Unavailable(f"apt-get cannot install {missing}: {_last_line(done.stderr)}")


def _is_installed(package: str) -> bool:
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
    try:
        done = subprocess.run(query, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise Unavailable(f"needs {package}, and this is no Debian machine") from error
    return done.stdout.strip() == "installed"


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """invoke-rc.d asks this file, and 101 means: start nothing (Debian policy 9.3.3)."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


# --- Processes -----------------------------------------------------------------------------


class Process:
    """A server under test: dies with us, and its CPU time is counted with its children's."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        cpus: Sequence[int] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        BENCH.mkdir(exist_ok=True)
        self.log = BENCH / f"{name}.log"
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(
                _prepared(command, cpus),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(os.environ) | dict(env or {}),
                cwd=cwd or ROOT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def cpu_s(self) -> float:
        """CPU time of the process and its living descendants, so far."""
        return cpu_s(self.pid)

    def rss_mib(self) -> float:
        """Resident memory of the process and its living descendants."""
        return rss_mib(self.pid)

    def stop(self, timeout_s: float = 10.0) -> None:
        """SIGTERM; SIGKILL for the whole group if that does not help."""
        if self.alive:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_until(self, ready: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Raises `Unavailable` with the end of the log when `ready` never comes true."""
        end = time.monotonic() + timeout_s
        while not ready():
            if not self.alive or time.monotonic() > end:
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])
                why = "did not become ready" if self.alive else "ended"
                raise Unavailable(f"{self.name} {why}; the end of {self.log}:\n{tail}")
            time.sleep(0.05)

    def wait_for_port(self, port: int, host: str = "127.0.0.1", timeout_s: float = 20.0) -> None:
        """Until a TCP port accepts."""
        self.wait_until(lambda: accepts(port, host), timeout_s)


# As `_prepare` does, and then becomes the command. Not as `preexec_fn`, which would fork a process
# that may have gRPC's threads in it: its fork handlers abort the child at times.
_BECOME = """
import ctypes, os, sys
parent, cpus, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != parent:
    sys.exit("the parent is gone")
if cpus:
    os.sched_setaffinity(0, [int(cpu) for cpu in cpus.split(",")])
os.execvp(command[0], command)
"""


def _prepared(command: Sequence[str], cpus: Sequence[int] | None) -> list[str]:
    """A command line that becomes `command`, dies with this process, and stays on `cpus`."""
    on = ",".join(map(str, cpus or ()))
    return [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), on, *command]


def _prepare(cpus: Sequence[int] | None) -> None:
    """In the child, before exec: die with the parent, and stay on `cpus`."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if cpus:
        os.sched_setaffinity(0, cpus)


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """A TCP and UDP port that was free a moment ago."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            with contextlib.suppress(OSError):
                udp.bind(("127.0.0.1", port))
                return port


def machine_busy_s() -> float:
    """CPU time that the whole machine has spent on anything, so far."""
    with contextlib.suppress(OSError, ValueError):
        ticks = [int(t) for t in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return (sum(ticks) - ticks[3] - ticks[4]) / _TICKS_PER_S  # without idle and iowait
    return 0.0


def process_tree(pid: int) -> list[int]:
    """`pid` and its living descendants."""
    found, todo = [], [pid]
    while todo:
        current = todo.pop()
        found.append(current)
        for task in Path(f"/proc/{current}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                todo += [int(child) for child in task.read_text().split()]
    return found


def cpu_s(pid: int) -> float:
    """CPU time of `pid` and its living descendants, with that of children they waited for."""
    total = 0
    for member in process_tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(ticks) for ticks in fields[11:15])
    return total / _TICKS_PER_S


def rss_mib(pid: int) -> float:
    """Resident memory of `pid` and its living descendants."""
    pages = 0
    for member in process_tree(pid):
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{member}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass(frozen=True)
class Ran:
    """A load generator's run. `cores` is the CPU time it took over its wall time."""

    out: str
    wall_s: float
    cores: float


def run_generator(
    command: Sequence[str], *, cpus: Sequence[int] | None = None, timeout_s: float = 300.0
) -> Ran:
    """Run a load generator to its end. Raises `Unavailable` when it fails."""
    started = time.monotonic()
    process = subprocess.Popen(
        list(command),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: _prepare(cpus),
    )
    assert process.stdout is not None
    try:
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    wall_s = time.monotonic() - started
    if process.returncode:
        raise Unavailable(f"{command[0]} failed ({process.returncode}): {_last_line(out)}")
    return Ran(out, wall_s, (usage.ru_utime + usage.ru_stime) / wall_s)


def cores_for(servers: int = 1) -> tuple[list[int], list[int]]:
    """CPUs for the server and for the generator, apart; the same for every side."""
    available = sorted(os.sched_getaffinity(0))
    if len(available) <= servers:
        return available, available
    return available[:servers], available[servers:]


# --- Measuring -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One turn of one side. Higher `value` is better, unless the report says otherwise.

    `server_cores` and `generator_cores`: CPU time over wall time, where measured, and
    `server_limit`, `generator_limit`: how many cores each could have used. `take_turns` fills
    in `other_cores`.
    """

    value: float
    server_cores: float | None = None
    generator_cores: float | None = None
    server_limit: float = 1.0
    generator_limit: float = 1.0
    other_cores: float | None = None  # what everything else on the machine used meanwhile
    notes: Mapping[str, float] = field(default_factory=dict)

    @property
    def bound_by(self) -> str:
        """ "server", "generator", "both", "neither", or "?" where that was not measured."""
        if self.server_cores is None or self.generator_cores is None:
            return "?"
        server = self.server_cores >= _BUSY * self.server_limit
        generator = self.generator_cores >= _BUSY * self.generator_limit
        if server and generator:
            return "both"
        return "server" if server else "generator" if generator else "neither"

    @property
    def per_core(self) -> float | None:
        """What one busy core of the server is worth: `value` over the cores it used."""
        return self.value / self.server_cores if self.server_cores else None


def take_turns(
    sides: Mapping[str, Callable[[], Sample]], runs: int, *, warm_up: bool = True
) -> dict[str, list[Sample]]:
    """Each side in turn, `runs` times over, so that a slow minute of the machine hits all.

    The order turns round by one each time. A first turn that does not count warms caches up.
    """
    names = list(sides)
    taken: dict[str, list[Sample]] = {name: [] for name in names}
    for turn in range(-1 if warm_up else 0, runs):
        start = max(turn, 0) % len(names)
        for name in names[start:] + names[:start]:
            busy_s, started = machine_busy_s(), time.monotonic()
            sample = sides[name]()
            busy = (machine_busy_s() - busy_s) / (time.monotonic() - started)
            if sample.server_cores is not None and sample.generator_cores is not None:
                others = max(0.0, busy - sample.server_cores - sample.generator_cores)
                sample = replace(sample, other_cores=others)
            if turn >= 0:
                taken[name].append(sample)
                say(f"  run {turn + 1}/{runs}  {name:<24} {sample.value:>14,.1f}")
    return taken


def median(samples: Sequence[Sample], read: Callable[[Sample], float | None]) -> float | None:
    values = [value for sample in samples if (value := read(sample)) is not None]
    return statistics.median(values) if values else None


def _median_note(samples: Sequence[Sample], name: str) -> float | None:
    return median(samples, lambda sample: sample.notes.get(name))


class Report:
    """Collects scenarios, prints them, and writes the JSON. The first one gives the ratios.

    In the JSON, `ratios` holds "<peer>" for the first scenario, and "<scenario>/<peer>" for
    all; "<scenario>/<peer>/per core" compares what a CPU second of each server yields.
    """

    def __init__(self, name: str, unit: str, *, lower_is_better: bool = False) -> None:
        self.name = name
        self.unit = unit
        self._lower = lower_is_better
        self.ratios: dict[str, float] = {}
        self.figures: dict[str, Any] = {}
        self.notes: list[str] = []

    def add(
        self,
        scenario: str,
        samples: Mapping[str, Sequence[Sample]],
        *,
        unit: str = "",
        lower_is_better: bool | None = None,
    ) -> None:
        """Take in one scenario's samples by side, and print its table."""
        lower = self._lower if lower_is_better is None else lower_is_better
        first = not self.figures
        sides = {name: self._figures(taken) for name, taken in samples.items() if taken}
        self.figures[scenario] = {"unit": unit or self.unit, "sides": sides}
        ours = sides.get(OURS)
        for name, side in sides.items():
            if name == OURS or ours is None:
                continue
            ratio = _ratio(ours["median"], side["median"], lower)
            side["ratio"] = ratio
            self.ratios[f"{scenario}/{name}"] = ratio
            if first:
                self.ratios[name] = ratio
            if not lower and ours["per_core"] and side["per_core"]:
                side["ratio_per_core"] = _ratio(ours["per_core"], side["per_core"], lower=False)
                self.ratios[f"{scenario}/{name}/per core"] = side["ratio_per_core"]
        self._print(scenario, sides, unit or self.unit)

    def note(self, text: str) -> None:
        """Something that the reader of the figures must know."""
        self.notes.append(text)
        say(f"note: {text}")

    def finish(self, json_path: Path | None) -> None:
        """Write the JSON, if asked to."""
        document = {
            "name": self.name,
            "ratios": self.ratios,
            "figures": self.figures,
            "notes": self.notes,
            "machine": machine(),
        }
        if json_path is not None:
            json_path.write_text(json.dumps(document, indent=2) + "\n")
            say(f"written: {json_path}")

    def _figures(self, samples: Sequence[Sample]) -> dict[str, Any]:
        values = [sample.value for sample in samples]
        notes = sorted({name for sample in samples for name in sample.notes})
        return {
            "median": statistics.median(values),
            "low": min(values),
            "high": max(values),
            "runs": values,
            "server_cores": median(samples, lambda s: s.server_cores),
            "generator_cores": median(samples, lambda s: s.generator_cores),
            "other_cores": median(samples, lambda s: s.other_cores),
            "per_core": median(samples, lambda s: s.per_core),
            "bound_by": statistics.mode(sample.bound_by for sample in samples),
            "notes": {name: _median_note(samples, name) for name in notes},
        }

    def _print(self, scenario: str, sides: Mapping[str, Any], unit: str) -> None:
        table = Table(title=f"{self.name}: {scenario}", title_justify="left")
        table.add_column("side")
        for heading in (unit, "spread", "server cores", "generator cores", "per core",
                        "bound by", "ours / it", "per core"):  # fmt: skip
            table.add_column(heading, justify="right")
        for name, side in sides.items():
            table.add_row(
                name,
                f"{side['median']:,.1f}",
                f"{side['low']:,.1f} to {side['high']:,.1f}",
                _number(side["server_cores"]),
                _number(side["generator_cores"]),
                _number(side["per_core"], ",.0f"),
                side["bound_by"],
                _number(side.get("ratio")),
                _number(side.get("ratio_per_core")),
            )
        _console.print(table)
        for name, side in sides.items():
            if side["bound_by"] == "generator":
                say(f"  {name}: the load generator was the limit, so its figure is a lower bound")
        others = max((side["other_cores"] or 0.0 for side in sides.values()), default=0.0)
        if others > _QUIET:
            say(f"  other processes used up to {others:.1f} cores meanwhile: trust ratios "
                "(all sides had the same) and figures per core, not absolute figures")  # fmt: skip


def _ratio(ours: float, peer: float, lower: bool) -> float:
    if not ours or not peer:
        return 0.0
    return round(peer / ours if lower else ours / peer, 4)


def _number(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else format(value, form)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = "unknown"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


# --- The command line ----------------------------------------------------------------------

_console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def say(text: str) -> None:
    _console.print(text, markup=False)


def arguments(description: str, *, runs: int = 5, seconds: float = 5.0) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--runs", type=int, default=runs, help="turns of each side")
    parser.add_argument("--seconds", type=float, default=seconds, help="length of one turn")
    return parser
