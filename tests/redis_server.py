"""A real Redis for tests: the machine's own, or Debian's package.

The package and what it needs are fetched once with apt-get, from the mirrors that this machine's
own apt uses, into private folders: nothing is installed, and no setting of the machine changes.
Where that cannot be done, `find_redis` says why, and tests that need Redis are skipped with that
reason.

`TRADEWIND_REDIS` names a binary to use instead.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

from tests import debian_package

PACKAGES = (
    "redis-server", "redis-tools", "libjemalloc2", "liblua5.1-0", "lua-bitop", "lua-cjson",
    "liblzf1", "libatomic1",
)  # fmt: skip


class NoRedisServer(Exception):
    """There is no Redis to test with; the text says why."""


def find_redis() -> Path:
    """The path of a Redis server, fetched if need be; raises `NoRedisServer`."""
    named = os.environ.get("TRADEWIND_REDIS") or shutil.which("redis-server")
    if named:
        return Path(named)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tradewind"
    kept = home / "redis"
    if not kept.exists():
        try:
            _fetch(kept)
        except (OSError, subprocess.SubprocessError) as error:
            raise NoRedisServer(f"Debian's package redis could not be fetched: {error}") from error
    binary = kept / "usr" / "bin" / "redis-server"
    try:
        debian_package.run(kept, str(binary), "--version", env=_environment(binary))
    except (OSError, subprocess.SubprocessError) as error:
        raise NoRedisServer(f"Debian's package redis does not run here: {error}") from error
    return binary


def _fetch(into: Path) -> None:
    missing = debian_package.missing_tool()
    if missing:
        raise OSError(f"it needs {missing}")
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="redis-", dir=into.parent) as folder:
        work = Path(folder)
        debian_package.apt(work, "update")
        debian_package.apt(work, "download", *PACKAGES)
        for package in work.glob("*.deb"):
            debian_package.run(work, "dpkg-deb", "--extract", str(package), str(work / "out"))
        (work / "out").rename(into)


def _environment(binary: Path) -> dict[str, str]:
    libraries = [str(path) for path in (binary.parents[1] / "lib").glob("*-linux-gnu")]
    return os.environ | ({"LD_LIBRARY_PATH": ":".join(libraries)} if libraries else {})


class RedisServer:
    """One server on a free port of 127.0.0.1, which keeps nothing on disk."""

    def __init__(self, binary: Path, directory: Path) -> None:
        self._binary = binary
        self._directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def start(self) -> None:
        """Start it and wait until it answers."""
        command = [str(self._binary), "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--save", "", "--appendonly", "no", "--dir", str(self._directory)]
        with (self._directory / "redis.log").open("ab") as log:
            self._process = debian_package.start(command, log, _environment(self._binary))
        async with asyncio.timeout(30):
            while not await self._answers():
                if self._process.poll() is not None:
                    tail = (self._directory / "redis.log").read_text()[-800:]
                    raise NoRedisServer(f"the server ended: {tail}")
                await asyncio.sleep(0.02)

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.write(b"PING\r\n")
        line = await reader.readline()
        writer.close()
        return line.startswith(b"+PONG")

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGKILL)
            self._process.wait(10)
            self._process = None


if __name__ == "__main__":
    try:
        print(f"Redis for the tests: {find_redis()}")
    except NoRedisServer as reason:
        print(f"NO REDIS WILL BE TESTED: {reason}")
