"""A staged change over real sockets, from the admin's plan to what each node is sent."""

from __future__ import annotations

from pathlib import Path

from control_plane.changes.plan import Wanted
from control_plane.store.memory import MemoryStore
from tests.control_plane.mesh import Mesh, at, node, region, resource, serving, until, world
from topology.snapshot import Snapshot


def policy(*canaries: str) -> object:
    rollout = {
        "canaries": list(canaries),
        "canary_percent": 0.0,
        "canary_hold_s": 3600.0,
        "steps": [100.0],
    }
    return resource("Policy", "default", rollout=rollout)


async def test_a_change_reaches_the_canary_and_nobody_else_hears_of_it(
    mesh: Mesh, tmp_path: Path
) -> None:
    store = MemoryStore()
    seen: dict[str, list[int]] = {"tokyo": [], "london": []}

    def capacity(snapshot: Snapshot) -> int:
        return int(snapshot.regions["singapore"].capacity_tokens_per_s)

    async with serving(mesh, store, data_dir=tmp_path) as replica:
        await replica.changes.apply(Wanted(puts=(*world(), policy("tokyo"))), "o/a")
        async with (
            node(
                mesh,
                "edge/tokyo",
                [at(replica)],
                on_snapshot=lambda s: seen["tokyo"].append(capacity(s)),
            ) as tokyo,
            node(
                mesh,
                "edge/london",
                [at(replica)],
                on_snapshot=lambda s: seen["london"].append(capacity(s)),
            ) as london,
        ):
            await until(lambda: tokyo.status.connected and london.status.connected)
            held = london.snapshot
            done = await replica.changes.apply(
                Wanted(puts=(region("singapore", "SG", capacity_tokens_per_s=7),)), "o/a"
            )
            await until(lambda: tokyo.snapshot.revision == done.revision)
            by_id = {s.node_id: s for s in replica.discovery.sessions}
            await until(lambda: by_id["edge/tokyo"].acked_revision == done.revision)
            assert replica.catalog.view.rollout is not None
            assert replica.catalog.view.rollout.under_way
            assert by_id["edge/london"].staged
            assert not by_id["edge/tokyo"].staged
            assert not by_id["edge/london"].behind
            assert london.snapshot is held, "nothing was sent to it"
            assert by_id["edge/london"].acked_revision < done.revision
            # One that comes anew is served what was before, whole.
            async with node(mesh, "core/frankfurt", [at(replica)]) as core:
                await until(lambda: core.status.connected)
                assert capacity(core.snapshot) == 100
                assert len(core.snapshot) == len(tokyo.snapshot)
        assert seen == {"tokyo": [100, 7], "london": [100]}
