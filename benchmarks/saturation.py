"""Goodput as the load rises beyond what can be had: our edge against other people's proxies.

    python -m benchmarks.saturation [--json FILE] [--seconds 5] [--loads 0.5 1 2 4 8 15]
                                    [--sides ours envoy sglang-router vllm-router litellm]

One core (engine `sim`, its capacity measured first) and before it, one after the other: our edge
(one worker, over the overlay), and Envoy, sglang-router, vllm-router and LiteLLM in front of the
same core's HTTP API, each configured for overload (docs/storm-peers.md). The clients are the
storm's (lab/storm/population.py, a process of its own, open loop): Zipf questions, 5% VIP, 70%
standard, 25% batch, a third streamed, 4 s of patience, nobody asks twice and nothing may be
cached, so that admission alone is compared. The loads follow each other without a pause, so that
what adapts has its history, and the first 1.5 s of each do not count.

Goodput is whole answers in time per second; the yardstick is f_sat / f (Zhou et al. 2018): goodput
over what could be had, the lesser of what was offered and the capacity. About 3.5 minutes.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.edge_process import MODEL, Site
from benchmarks.harness import BENCH, OURS, Process, Report, Sample, arguments, free_port, say
from lab.storm import figures, rows
from lab.storm.event import Phase, Population, Share, tenant_names
from lab.storm.peers import PEERS, Cores, PeerUnavailable
from lab.storm.peers.base import answers
from lab.storm.population import Settings
from lab.storm.saturation import capacity_rps
from topology import api_key
from topology.cursor import TIERS

LOADS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
SIDES = (OURS, *PEERS)
SETTLING_S = 1.5
SLOTS = 16
ENGINE = {
    "prefill_tokens_per_s": 20_000.0,
    "step_ms": 32.0,
    "step_ms_per_sequence": 0.3,
    "answer_tokens_min": 12,
    "answer_tokens_max": 36,
}
CITY = Share("tokyo", 1.0)
PEOPLE = Population(
    deterministic_share=0.0, tries=1, max_tokens=48, questions=20_000, baseline_even=False
)


@dataclass(frozen=True)
class Backend:
    """The core that all sides share."""

    site: Site
    address: str
    capacity: float
    keys: dict[str, str]


def key_of(tenant: str) -> str:
    return f"key-of-{tenant}"


def tenants() -> dict[tuple[str, str], dict[str, object]]:
    return {
        ("Tenant", name): {
            "tier": tier,
            "api_keys": [api_key.digest(key_of(name))],
            "deadline_ms": round(1000 * PEOPLE.timeout_s),
        }
        for tier, names in tenant_names(PEOPLE).items()
        for name in names
    }


@contextmanager
def backend(folder: Path) -> Iterator[Backend]:
    site = Site(folder, cache_ttl_s=0, specs=tenants())
    port = free_port()
    scheduling = {
        "slots": SLOTS,
        "context_tokens": 512,
        "max_output_tokens": 128,
        "default_output_tokens": 64,
    }
    http = {"host": "127.0.0.1", "port": port}
    with site.start_core(sim=ENGINE, scheduling=scheduling, http=http, log_level="warning") as core:
        keys = {name: key_of(name) for names in tenant_names(PEOPLE).values() for name in names}
        core.wait_until(lambda: answers(port, MODEL, "none"))
        address = f"127.0.0.1:{port}"
        capacity = asyncio.run(capacity_rps([address], MODEL, PEOPLE.max_tokens, SLOTS * 3 // 2))
        yield Backend(site, address, capacity, keys)


def start(name: str, behind: Backend, folder: Path) -> tuple[Process, str]:
    """A side, and its address."""
    if name == OURS:
        return behind.site.start_edge(), f"http://127.0.0.1:{behind.site.http_port}"
    steps = (ENGINE["answer_tokens_min"] + ENGINE["answer_tokens_max"]) / 2 + 1
    step_ms = ENGINE["step_ms"] + ENGINE["step_ms_per_sequence"] * (SLOTS - 1)
    cores = Cores(
        addresses=(behind.address,),
        model=MODEL,
        slots=SLOTS,
        answer_s=steps * step_ms / 1000,
        capacity_rps=behind.capacity,
        deadline_s=PEOPLE.timeout_s,
        vip_keys=tuple(key for tenant, key in behind.keys.items() if tenant.startswith("vip-")),
    )
    port = free_port()
    launch = PEERS[name].launch(cores, port, folder)
    say(f"  {name}: {launch.settings}")
    process = Process(name, launch.command, env=launch.environment)
    process.wait_until(lambda: answers(port, MODEL, cores.vip_keys[0]), timeout_s=150)
    return process, f"http://127.0.0.1:{port}"


def phases(loads: Sequence[float], seconds: float, capacity: float) -> tuple[Phase, ...]:
    return tuple(
        Phase(f"{load:g}x", n * seconds, (n + 1) * seconds, load * capacity)
        for n, load in enumerate(loads)
    )


def run(
    name: str, behind: Backend, folder: Path, loads: Sequence[float], seconds: float
) -> dict[str, Sample]:
    """All loads through one side; a sample of each."""
    folder.mkdir()
    plan = phases(loads, seconds, behind.capacity)
    settings = Settings(
        phases=plan,
        cities=(CITY,),
        population=PEOPLE,
        seed=6,
        urls={CITY.name: ""},
        keys=behind.keys,
        model=MODEL,
        patience_s=PEOPLE.timeout_s,
        rows=str(folder / "rows"),
        live=str(folder / "live"),
    )
    process, url = start(name, behind, folder)
    with process:
        file = folder / "population.json"
        urls = {CITY.name: url}
        file.write_bytes(msgspec.json.encode(msgspec.structs.replace(settings, urls=urls)))
        command = [sys.executable, "-m", "lab.storm.population", str(file)]
        before_s = process.cpu_s()
        with Process("population", command) as clients:
            clients.wait_until(lambda: not clients.alive or _written(settings), timeout_s=120)
        cores = (process.cpu_s() - before_s) / (plan[-1].ends_s + PEOPLE.timeout_s)
        records = rows.read(Path(settings.rows))
        say(
            f"  {name}: {cores:.2f} cores, {process.rss_mib():.0f} MiB; the generator sent "
            f"{records.lag_p99_ms:.0f} ms late at the 99th percentile, and took "
            f"{records.cpu_s:.1f} s of CPU"
        )
    why = Counter(row.error for row in records.rows if not row.ok).most_common(4)
    say(f"  {name}: failures: " + (", ".join(f"{n} x {text}" for text, n in why) or "none"))
    return {phase.name: sample(records.rows, phase, behind.capacity) for phase in plan}


def _written(settings: Settings) -> bool:
    return Path(settings.rows).exists()


def sample(found: Sequence[rows.Row], phase: Phase, capacity: float) -> Sample:
    begins_s = phase.begins_s + SETTLING_S
    goodput = figures.goodput_rps(found, begins_s, phase.ends_s)
    mine = [row for row in found if begins_s <= row.due_s < phase.ends_s]
    offered = len(mine) / (phase.ends_s - begins_s)
    notes = {"of what could be had": goodput / min(offered, capacity)}
    for tier in TIERS:
        of_tier = [row for row in mine if row.tier == tier]
        ok = [row.whole_s for row in of_tier if row.ok]
        notes[f"{tier} success"] = len(ok) / max(1, len(of_tier))
        notes[f"{tier} p99, s"] = figures.nearest(ok, 0.99)
    return Sample(goodput, notes=notes)


def shown(side: str, load: str, taken: Sample) -> str:
    note: Callable[[str], float] = taken.notes.__getitem__
    return (
        f"  {load:>5} {side:<14} {taken.value:6.1f}/s, {note('of what could be had'):.0%} of what "
        f"could be had; VIP {note('vip success'):.1%}, p99 {note('vip p99, s'):.2f} s; standard "
        f"{note('standard success'):.0%}, batch {note('batch success'):.0%}"
    )


def main() -> None:
    parser = arguments(__doc__ or "", runs=1)
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS, help="times capacity")
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    given = parser.parse_args()
    report = Report("saturation", unit="answers in time/s")
    BENCH.mkdir(exist_ok=True)
    with ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="saturation-", dir=BENCH)
        folder = Path(stack.enter_context(temporary))
        behind = stack.enter_context(backend(folder / "core"))
        report.note(f"capacity, measured: {behind.capacity:.1f} answers a second ({SLOTS} slots)")
        taken: dict[str, dict[str, Sample]] = {}
        for name in given.sides:
            try:
                taken[name] = run(name, behind, folder / name, given.loads, given.seconds)
            except PeerUnavailable as why:
                report.note(f"{name} is missing: {why}")
    for load in sorted(given.loads, reverse=True):  # the highest gives the ratios
        name = f"{load:g}x"
        report.add(name, {side: [samples[name]] for side, samples in taken.items()})
    for load in given.loads:
        for side, samples in taken.items():
            say(shown(side, f"{load:g}x", samples[f"{load:g}x"]))
    report.finish(given.json)


if __name__ == "__main__":
    main()
