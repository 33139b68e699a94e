"""Peers written in Python live outside our environment, in `.bench/<name>` (pip, nothing else)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lab.errors import LabError

FOLDER = Path(__file__).resolve().parents[3] / ".bench"
INSTALL_LIMIT_S = 900.0  # of one command
_PIP = ("install", "--quiet", "--disable-pip-version-check")


class PeerUnavailable(LabError):
    """A peer cannot be had on this machine; the text says why."""


def installed(name: str, packages: Sequence[str], folder: Path = FOLDER) -> Path | None:
    """The `bin` folder of the environment `name`, when it holds exactly what `packages` asks for
    (pip's words)."""
    stamp = folder / name / ".packages"
    ready = stamp.is_file() and stamp.read_text() == "\n".join(packages)
    return folder / name / "bin" if ready else None


def install(name: str, packages: Sequence[str], folder: Path = FOLDER) -> Path:
    """`installed`, made first if need be, which takes pip a minute. Raises `PeerUnavailable`."""
    found = installed(name, packages, folder)
    if found is not None:
        return found
    place = folder / name
    folder.mkdir(exist_ok=True)
    make = [sys.executable, "-m", "venv", str(place)]
    for command in (make, [str(place / "bin" / "pip"), *_PIP, *packages]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S)
        except subprocess.TimeoutExpired as error:
            text = f"{name}: {' '.join(command)} took more than {INSTALL_LIMIT_S:g} s"
            raise PeerUnavailable(text) from error
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            why = lines[-1] if lines else "no message"
            raise PeerUnavailable(f"{name}: {' '.join(command)} failed: {why}")
    (place / ".packages").write_text("\n".join(packages))
    return place / "bin"
