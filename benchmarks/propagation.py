"""From `apply` to acknowledged by every node: time, CPU and memory, and how they grow.

    make bench NAME=propagation JSON=FILE
    python -m benchmarks.propagation [--sizes 10,100,1000,3000] [--runs 25] [--herd 1000]

Real parts throughout: a replica process on a real etcd, applies over the admin API (gRPC), and
subscribers in two processes of their own, each subscriber a node with its own id on its own TCP
and mutual TLS connection (`benchmarks.subscribers`). Fifty of them share a certificate, as the
workers of one edge. Beside it, in the same run, etcd's own watch with the same
TLS to as many watchers, which acknowledge nothing.

A figure is taken for each apply when the last node has acknowledged it (its ACK is written), and
for each node. The replica's CPU is that of its whole process, the apply itself included. Its
memory is what it has more than before the nodes came.

`--herd N`: N nodes lose their streams and all come back at once, while geo-DNS answers queries
and, in the midst of them, a node of the role dns comes too.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import harness
from benchmarks.dns_latency import Questions
from benchmarks.harness import OURS, Report, Sample, say
from benchmarks.mesh_world import Crowd, World
from benchmarks.subscribers import WATCHED
from control_plane.store.base import Put
from topology import resources as res
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb
from topology.wire.gen.tradewind.v1 import resource_pb2

PAUSE_S = 0.3  # between applies: each is pushed by itself, and is over before the next
PATIENCE_S = 60.0
TENANTS = 90
ZONE = "tradewind.test"
ETCD = "etcd watch"
BESIDE = "many"  # the safety rule that one of a few Regions would break each time

_numbers = itertools.count(1)  # so that no two applies are the same


# --- What is applied -------------------------------------------------------------------------


def region(capacity: int) -> dict[str, Any]:
    spec = {
        "city": "Singapore",
        "latitude": 1.3,
        "longitude": 103.8,
        "jurisdiction": "SG",
        "cores": ["127.0.0.1:4433"],
        "capacity_tokens_per_s": capacity,
    }
    return {"kind": "Region", "name": "singapore", "spec": spec}


def resources() -> list[dict[str, Any]]:
    """A region, an edge, a zone, and as many tenants as make a snapshot of 20 KB."""
    edge = {"city": "Tokyo", "latitude": 35.7, "longitude": 139.7, "jurisdiction": "JP"}
    zone = {
        "contact": f"hostmaster@{ZONE}",
        "nameservers": [{"name": f"ns1.{ZONE}", "addresses": ["127.0.0.1"]}],
        "names": [{"name": "api", "edges": ["*"]}],
    }
    return [
        region(1000),
        {"kind": "EdgeSite", "name": "tokyo", "spec": edge | {"addresses": ["127.0.0.1"]}},
        {"kind": "Zone", "name": ZONE, "spec": zone},
        *(
            {"kind": "Tenant", "name": f"t{n}", "spec": {"api_keys": [f"sha256:{n:064x}"]}}
            for n in range(TENANTS)
        ),
    ]


def request(documents: list[dict[str, Any]]) -> pb.ApplyRequest:
    message = pb.ApplyRequest(reason="benchmark", immediate=True, force=[BESIDE])
    for document in documents:
        parsed = res.parse(document, "benchmark")
        message.puts.append(
            resource_pb2.Resource(kind=parsed.kind, name=parsed.name, json=res.encode(parsed))
        )
    return message


# --- Propagation -----------------------------------------------------------------------------


class Turn(msgspec.Struct, frozen=True):
    """One apply: seconds from its start until each node had it, and until it was answered."""

    each_s: list[float]
    answered_s: float

    @property
    def last_s(self) -> float:
        return max(self.each_s)


def propagate(crowd: Crowd, apply: Callable[[], int], runs: int) -> list[Turn]:
    turns = []
    for _ in range(runs):
        time.sleep(PAUSE_S)
        began_s = time.monotonic()
        revision = apply()
        answered_s = time.monotonic() - began_s
        answers = crowd.ask(f"wait {revision} {PATIENCE_S}")
        late = sum(answer["late"] for answer in answers)
        if late:
            raise SystemExit(f"{late} of {crowd.size} subscribers never got revision {revision}")
        turns.append(Turn([at - began_s for a in answers for at in a["at_s"]], answered_s))
    return turns


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def times(turns: list[Turn]) -> dict[str, float]:
    """Milliseconds. `p50`, `p99`: of applies, until the last node has it; of fewer than 100
    applies the p99 is the worst. `…_node`: of nodes."""
    each = [value for turn in turns for value in turn.each_s]
    last = [turn.last_s for turn in turns]
    return {
        "p50_ms": statistics.median(last) * 1e3,
        "p99_ms": percentile(last, 0.99) * 1e3,
        "p50_node_ms": statistics.median(each) * 1e3,
        "p99_node_ms": percentile(each, 0.99) * 1e3,
        "answered_ms": statistics.median(turn.answered_s for turn in turns) * 1e3,
        "applies": len(turns),
    }


def measure_ours(world: World, size: int, runs: int) -> dict[str, float]:
    with world.admin() as admin, Crowd(world, "xds", size) as nodes:
        before_mib = world.replica.rss_mib()
        joined_s = join(nodes)

        def apply() -> int:
            return int(admin.apply(request([region(1000 + next(_numbers))])).revision)

        propagate(nodes, apply, 2)
        more_mib = world.replica.rss_mib() - before_mib
        cpu_s, crowd_s = world.replica.cpu_s(), nodes.cpu_s()
        began_s = time.monotonic()
        turns = propagate(nodes, apply, runs)
        wall_s = time.monotonic() - began_s
        cpu_s, crowd_s = world.replica.cpu_s() - cpu_s, nodes.cpu_s() - crowd_s
    pushes = runs * size
    return times(turns) | {
        "cpu_us_per_push": cpu_s / pushes * 1e6,
        "bytes_per_subscriber": more_mib * 2**20 / size,
        "joined_s": joined_s,
        "server_cores": cpu_s / wall_s,
        "generator_cores": crowd_s / wall_s,
        "generator_us_per_push": crowd_s / pushes * 1e6,
    }


def join(nodes: Crowd) -> float:
    """Connect them all; seconds until the last one is served."""
    answers = nodes.ask(f"join {PATIENCE_S}")
    late = sum(answer["late"] for answer in answers)
    if late:
        raise SystemExit(f"{late} of {nodes.size} did not get in: {answers[0]['refusals']}")
    began_s = min(answer["began_s"] for answer in answers)
    return float(max(at for answer in answers for at in answer["at_s"]) - began_s)


async def measure_etcd(world: World, size: int, runs: int) -> dict[str, float]:
    """etcd's own watch, with puts of the same size made directly."""
    store = world.store()
    loop = asyncio.get_running_loop()
    key = f"{WATCHED}one"

    def put() -> int:
        body = res.encode(res.parse(region(1000 + next(_numbers)), "benchmark"))
        work = store.transact([], [Put(key, body)])
        return asyncio.run_coroutine_threadsafe(work, loop).result(10)

    def run() -> dict[str, float]:
        with Crowd(world, "etcd", size) as watchers:
            joined_s = join(watchers)
            propagate(watchers, put, 2)
            cpu_s = harness.cpu_s(world.etcd.pid(0))
            turns = propagate(watchers, put, runs)
            cpu_s = harness.cpu_s(world.etcd.pid(0)) - cpu_s
        more = {"cpu_us_per_push": cpu_s / (runs * size) * 1e6, "joined_s": joined_s}
        return times(turns) | more

    try:
        return await asyncio.to_thread(run)
    finally:
        await store.close()


# --- The herd --------------------------------------------------------------------------------


def measure_herd(world: World, size: int) -> dict[str, float]:
    port = harness.free_port()
    with (
        world.start_dns(port),
        Crowd(world, "xds", size) as nodes,
        Crowd(world, "xds", 1, role="dns") as latecomer,
        Questions(port, f"api.{ZONE}") as questions,
    ):
        join(nodes)
        join(latecomer)
        calm_s = time.monotonic()
        time.sleep(3.0)
        latecomer.ask("leave")
        nodes.ask("leave")
        time.sleep(0.5)
        began_s = time.monotonic()
        nodes.tell(f"join {PATIENCE_S}")
        time.sleep(0.3)  # in the midst of the herd
        dns_s = join(latecomer)
        answers = nodes.hear()
        back = sorted(at - began_s for answer in answers for at in answer["at_s"])
        over_s = time.monotonic()
    calm, stormy = questions.between(calm_s, calm_s + 3.0), questions.between(began_s, over_s)
    return {
        "nodes": size,
        "late": sum(answer["late"] for answer in answers),
        "back_s": back[-1],
        "back_p50_s": statistics.median(back),
        "admitted_per_s": len(back) / back[-1],
        "most_admitted_in_1s": busiest(back),
        "attempts_per_node": sum(answer["attempts"] for answer in answers) / size - 1.0,
        "dns_node_back_s": dns_s,
        "dns_query_calm_p99_ms": percentile(calm, 0.99) * 1e3,
        "dns_query_herd_p50_ms": statistics.median(stormy) * 1e3,
        "dns_query_herd_p99_ms": percentile(stormy, 0.99) * 1e3,
        "dns_queries_lost": questions.lost,
    }


def busiest(at_s: list[float]) -> int:
    """The most that came within one second."""
    start = most = 0
    for end, at in enumerate(at_s):
        while at - at_s[start] > 1.0:
            start += 1
        most = max(most, end - start + 1)
    return most


# --- The report ------------------------------------------------------------------------------


def show(title: str, found: dict[str, float]) -> None:
    say(f"{title:<24}" + "  ".join(f"{name} {value:,.4g}" for name, value in found.items()))


def sample(found: dict[str, float]) -> Sample:
    return Sample(
        found["p50_ms"],
        found.get("server_cores"),
        found.get("generator_cores"),
        generator_limit=2.0,
        notes=found,
    )


async def run(options: Any, report: Report) -> None:
    with tempfile.TemporaryDirectory(prefix="propagation-") as folder:
        world = World(Path(folder))
        await world.start_etcd()
        try:
            for size in map(int, options.sizes.split(",")):
                mine = await with_replica(world, partial(measure_ours, world, size, options.runs))
                theirs = await measure_etcd(world, size, options.runs)
                take_in(report, size, mine, theirs)
            if options.herd:
                herd = await with_replica(world, partial(measure_herd, world, options.herd))
                show("herd", herd)
                report.figures["herd"] = herd
        finally:
            await world.etcd.stop()


async def with_replica(world: World, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """On a replica that has just started, so that its memory tells of this size alone."""

    def run() -> dict[str, float]:
        world.start_replica()
        with world.replica, world.admin() as admin:
            admin.apply(request(resources()))
            return measure()

    return await asyncio.to_thread(run)


def take_in(report: Report, size: int, mine: dict[str, float], theirs: dict[str, float]) -> None:
    show(f"{size} {OURS}", mine)
    show(f"{size} {ETCD}", theirs)
    name = f"subscribers_{size}"
    report.add(name, {OURS: [sample(mine)], ETCD: [sample(theirs)]})
    report.figures[name] |= mine | {"etcd": theirs}


def main() -> None:
    parser = harness.arguments(__doc__ or "", runs=25)
    parser.add_argument("--sizes", default="1000,10,100,3000", help="the first gives the ratio")
    parser.add_argument("--herd", type=int, default=1000, help="0: leave it out")
    options = parser.parse_args()
    report = Report("propagation", unit="ms until all have it (p50)", lower_is_better=True)
    asyncio.run(run(options, report))
    report.finish(options.json)


if __name__ == "__main__":
    main()
