"""The lab's etcd: it starts or says why not, keeps its data, and outlives nobody."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.errors import AddressBusy, LabError, ProcessDied
from lab.etcd_cluster import EtcdCluster, EtcdPorts
from tests.store.worlds import free_ports


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return False


def pids_of(directory: Path) -> list[int]:
    """Processes that name `directory` in their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(directory) in (entry / "cmdline").read_text():
                found.append(int(entry.name))
    return found


async def test_a_busy_port_is_named(etcd: EtcdCluster, tmp_path: Path) -> None:
    taken = etcd.ports[0].client
    cluster = EtcdCluster(tmp_path, ports=[EtcdPorts(free_ports(1)[0].client, taken)])
    with pytest.raises(AddressBusy, match=f"127.0.0.1:{taken}"):
        await cluster.start()
    assert not pids_of(tmp_path)


async def test_a_member_that_will_not_start_shows_its_log(tmp_path: Path) -> None:
    cluster = EtcdCluster(tmp_path, ports=free_ports(2), extra_arguments=["--no-such-flag"])
    with pytest.raises(ProcessDied, match="flag provided but not defined") as caught:
        await cluster.start()
    assert str(tmp_path / "etcd") in str(caught.value)
    assert not pids_of(tmp_path)


async def test_a_cluster_without_quorum_says_so(tmp_path: Path) -> None:
    ports = free_ports(3)
    cluster = EtcdCluster(tmp_path, ports=ports, durable=False, start_timeout_s=1.0)
    with pytest.raises(ProcessDied, match="found no leader within 1 s"):
        await cluster.restart(0)
    assert not pids_of(tmp_path)


async def test_members_stop_and_come_back_with_their_data(tmp_path: Path) -> None:
    cluster = EtcdCluster(tmp_path, ports=free_ports(1), durable=False)
    with pytest.raises(LabError, match="not running"):
        cluster.freeze(0)
    await cluster.start()
    await cluster.start()  # all run: nothing to do
    assert cluster.running(0)
    assert await cluster.leader() == 0
    cluster.freeze(0)
    await cluster.stop(grace_s=0.3)
    await cluster.stop()
    assert not cluster.running(0)
    assert not pids_of(tmp_path)
    await cluster.restart(0)
    assert await cluster.leader() == 0
    await cluster.stop(grace_s=0)


async def test_members_die_with_their_parent(tmp_path: Path) -> None:
    code = f"""
import asyncio
from pathlib import Path
from lab.etcd_cluster import EtcdCluster, EtcdPorts
async def main():
    cluster = EtcdCluster(Path({str(tmp_path)!r}), ports={free_ports(1)!r}, durable=False)
    await cluster.start()
    print("started", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert await asyncio.to_thread(parent.stdout.readline) == "started\n"
    pids = [pid for pid in pids_of(tmp_path) if pid != parent.pid]
    assert len(pids) == 1
    os.kill(parent.pid, 9)
    parent.wait()
    parent.stdout.close()
    async with asyncio.timeout(5):
        while any(map(alive, pids)):
            await asyncio.sleep(0.02)
