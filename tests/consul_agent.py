"""A real Consul agent for tests: version 1.8.7, from Debian 11's package.

It is fetched once with apt-get, from the mirror that this machine's own apt uses, into private
folders: nothing is installed, and no setting of the machine changes. apt checks the package's
SHA256 against the index, and the index's signature against Debian's keys. Where that cannot be
done, `find_consul` says why, and tests that need the agent are skipped with that reason.

`TRADEWIND_CONSUL` names a binary to use instead.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import httpx

from tests import debian_package

SUITE = "bullseye"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class NoConsul(Exception):
    """There is no Consul to test with; the text says why."""


def find_consul() -> Path:
    """The path of a Consul binary, fetched if need be; raises `NoConsul`."""
    named = os.environ.get("TRADEWIND_CONSUL")
    if named:
        if not os.access(named, os.X_OK):
            raise NoConsul(f"TRADEWIND_CONSUL is {named}, which cannot be run")
        return Path(named)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tradewind"
    kept = home / "consul-1.8.7" / "consul"
    if not kept.exists():
        try:
            _fetch(kept)
        except (OSError, subprocess.SubprocessError) as error:
            raise NoConsul(f"Debian 11's package consul could not be fetched: {error}") from error
    return kept


def _fetch(into: Path) -> None:
    missing = debian_package.missing_tool()
    if missing:
        raise NoConsul(f"fetching Debian 11's package consul needs {missing}")
    if not KEYRING.exists():
        raise NoConsul(f"fetching Debian 11's package consul needs {KEYRING}")
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tradewind-consul-") as folder:
        work = Path(folder)
        stanza = {
            "Types": "deb",
            "URIs": debian_mirror(),
            "Suites": SUITE,
            "Components": "main",
            "Signed-By": str(KEYRING),
        }
        text = "".join(f"{name}: {value}\n" for name, value in stanza.items())
        (work / "debian.sources").write_text(text)
        _apt(work, "update")
        _apt(work, "download", "consul")
        (package,) = work.glob("consul_*.deb")
        debian_package.run(work, "dpkg-deb", "--extract", str(package), str(work / "out"))
        fresh = into.with_suffix(f".{os.getpid()}")
        shutil.copy2(work / "out" / "usr" / "bin" / "consul", fresh)
        fresh.replace(into)


def debian_mirror(folder: Path = Path("/etc/apt")) -> str:
    """The URI from which this machine's apt takes Debian itself; raises `NoConsul`."""
    texts = [p.read_text() for p in sorted((folder / "sources.list.d").glob("*.sources"))]
    for text in texts:
        for uri in re.findall(r"^URIs:\s*(\S+)", text, re.MULTILINE):
            if uri.rstrip("/").endswith("/debian"):
                return str(uri)
    one_line = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*.list"))]
    for path in one_line:
        found = re.search(
            r"^deb\s+(?:\[[^\]]*\]\s+)?(\S+/debian/?)\s",
            path.read_text() if path.exists() else "",
            re.MULTILINE,
        )
        if found:
            return found[1]
    raise NoConsul("this machine's apt has no Debian mirror to fetch the package consul from")


def _apt(work: Path, *arguments: str) -> None:
    sources = {"Dir__Etc__sourcelist": work / "debian.sources", "Dir__Etc__sourceparts": "-"}
    debian_package.apt(work, *arguments, **sources)


class ConsulAgent:
    """One agent on free ports of 127.0.0.1: a server of its own, which keeps nothing on disk, so
    that a restarted one has lost what was registered; or a client of the agent `join`. Call all of
    it from the thread of `start`."""

    def __init__(
        self,
        binary: Path,
        directory: Path,
        config: dict[str, Any] | None = None,
        join: ConsulAgent | None = None,
    ) -> None:
        self.directory = directory
        self._binary = binary
        ports = dict(zip(("http", "serf_lan", "server"), _free_ports(3), strict=True))
        off = dict.fromkeys(("dns", "grpc", "https", "serf_wan"), -1)
        self.port = ports["http"]
        self.serf_port = ports["serf_lan"]
        self._mode = ["-dev"]
        if join is not None:
            self._mode = [
                f"-data-dir={directory / 'data'}",
                f"-retry-join=127.0.0.1:{join.serf_port}",
            ]
        self._config: dict[str, Any] = {"ports": ports | off, "log_level": "info"}
        self._config |= {"disable_update_check": True, "node_name": "test"} | (config or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it and wait until there is a leader."""
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "agent.json"
        config.write_text(json.dumps(self._config))
        command = [str(self._binary), "agent", "-bind=127.0.0.1", "-client=127.0.0.1"]
        command += [*self._mode, f"-config-file={config}"]
        with (self.directory / "agent.log").open("ab") as log:
            self._process = debian_package.start(command, log)
        async with asyncio.timeout(30), httpx.AsyncClient() as http:
            while not await self._leads(http):
                await asyncio.sleep(0.1)

    async def _leads(self, http: httpx.AsyncClient) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            tail = (self.directory / "agent.log").read_text()[-800:]
            raise NoConsul(f"the agent ended: {tail}")
        headers = {"X-Consul-Token": self.token} if self.token else {}
        try:
            url = f"http://{self.address}/v1/health/service/consul?passing"
            answer = await http.get(url, headers=headers)
        except httpx.TransportError:
            return False
        return answer.status_code == 200 and bool(answer.json())

    @property
    def token(self) -> str:
        """Of the one who may do everything, where the agent has ACLs."""
        acl = self._config.get("acl", {})
        return str(acl.get("tokens", {}).get("master", ""))

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGKILL)
            self._process.wait(10)
            self._process = None


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


if __name__ == "__main__":
    try:
        print(f"Consul for the tests: {find_consul()}")
    except NoConsul as reason:
        print(f"NO CONSUL WILL BE TESTED: {reason}")
