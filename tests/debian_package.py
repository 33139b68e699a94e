"""Programs that tests drive, from Debian's packages.

They are fetched with apt-get into private folders, with nothing installed and no setting of the
machine changed, and run so that none outlives the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

FETCH_TIMEOUT_S = 120

# As in lab/etcd_cluster.py: the program dies with the tests, however they end.
_DIE_WITH_PARENT = """
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def missing_tool() -> str:
    """What fetching needs and this machine lacks; "": nothing."""
    return next((t for t in ("apt-get", "dpkg-deb") if shutil.which(t) is None), "")


def apt(work: Path, *arguments: str, **options: str | Path) -> None:
    """Run apt-get with lists and cache of its own under `work`. `options` are further ones of
    apt's, with `__` for `::`. Raises `OSError` with what it said."""
    settings: dict[str, str | Path] = {
        "Dir::State::lists": work / "lists",
        "Dir::Cache": work / "cache",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
    }
    settings |= {name.replace("__", "::"): value for name, value in options.items()}
    (work / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (work / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    flags = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    run(work, "apt-get", "-qq", *flags, *arguments)


def run(work: Path, *command: str, env: Mapping[str, str] | None = None) -> None:
    """Run a command to its end, or raise `OSError` with what it said."""
    done = subprocess.run(
        command,
        cwd=work,
        capture_output=True,
        text=True,
        timeout=FETCH_TIMEOUT_S,
        check=False,
        env=env,
    )
    if done.returncode != 0:
        raise OSError(f"{command[0]}: {done.stderr.strip()[-400:] or done.stdout.strip()[-400:]}")


def start(
    command: Sequence[str], log: IO[bytes], env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a server that dies with this process."""
    return subprocess.Popen(
        [sys.executable, "-c", _DIE_WITH_PARENT, str(os.getpid()), *command],
        stdout=log,
        stderr=log,
        env=env,
    )
