"""A replica and a node in a process that can write no file of more than 1 KiB: as on a full disk.

Run by `test_fail_static`; prints what came of it as JSON.
"""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from control_plane.changes.plan import Wanted
from control_plane.store.memory import MemoryStore
from tests.control_plane.mesh import Mesh, at, node, region, serving, until, world
from topology.wire import last_good

LIMIT_BYTES = 1024


async def run(folder: Path) -> dict[str, Any]:
    mesh = Mesh(folder)
    for principal in ("control/cp-1", "edge/tokyo"):
        mesh.files(principal)
    kept = folder / "edge.snapshot"
    _limit(resource.RLIM_INFINITY)
    async with (
        serving(mesh, MemoryStore(), data_dir=folder / "data") as replica,
        node(mesh, "edge/tokyo", [at(replica)], kept) as edge,
    ):
        first = await replica.changes.apply(Wanted(puts=tuple(world())), "o/a")
        await until(lambda: edge.snapshot.revision == first.revision)
        await until(lambda: last_good.load(kept) is not None and not replica.catalog.disk_behind)
        _limit(LIMIT_BYTES)
        second = await replica.changes.apply(Wanted(puts=(region("dubai", "AE"),)), "o/a")
        await until(lambda: edge.snapshot.revision == second.revision)
        [session] = replica.discovery.sessions
        await until(lambda: session.acked_revision == second.revision)
        await until(lambda: edge.disk_failures > 0 and replica.catalog.disk_failures > 0)
        metrics = replica.metrics.expose().decode()
        on_disk = last_good.load(kept)
    return {
        "served": edge.snapshot.revision == second.revision,
        "on_disk_is_the_old_one": on_disk is not None and on_disk.revision == first.revision,
        "metrics": [line for line in metrics.splitlines() if "control_disk" in line],
        "left_behind": sorted(path.name for path in folder.glob(".*")),
    }


def _limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    print(json.dumps(asyncio.run(run(Path(sys.argv[1])))))
