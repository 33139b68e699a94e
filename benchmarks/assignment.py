"""Assignment: 10,000 edges to 30 regions, ours against the plain linear program.

    python -m benchmarks.assignment [--json FILE] [--runs 3]

Ours is `topology.assignment.assign`, from the director's own dictionaries to shares by name. The
peers are given matrices that are ready, and give back nothing but the optimum's cost: scipy's
`linprog` with HiGHS on the sparse program of all edges and regions, at the full size, and
networkx's `network_simplex`, at a fiftieth of it, since it takes minutes over the whole. All
must find the same optimum.

Edges lie around twelve cities; each measures its own distances, so that no two are alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import networkx
import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

from benchmarks.harness import Report, Sample, arguments, say, take_turns
from topology.assignment import Assignment, assign

EDGES, REGIONS = 10_000, 30
LIMIT_S = 1.0
LOADS = (0.85, 0.4, 1.2)  # demand over capacity; the first gives the ratios
SEED = 4


class World:
    """Demand, distances and capacities, as the director has them and as matrices."""

    def __init__(
        self,
        edges: int,
        load: float,
        tiers: tuple[str, ...] = ("standard",),
        grain_ms: float = 0.0,
    ) -> None:
        rng = np.random.default_rng(SEED)
        names = [f"region-{n:02}" for n in range(REGIONS)]
        cities, places = rng.random((12, 2)), rng.random((REGIONS, 2))
        at = cities[rng.integers(12, size=edges)] + 0.06 * rng.standard_normal((edges, 2))
        self.cost = 4 + 220 * np.sqrt(((places[None] - at[:, None]) ** 2).sum(axis=2))
        self.cost += rng.exponential(3.0, self.cost.shape)
        if grain_ms:
            self.cost = np.maximum(np.round(self.cost / grain_ms), 1.0) * grain_ms
        self.tokens = 100 * rng.pareto(1.6, (edges, len(tiers))) + 1
        capacity = rng.random(REGIONS) + 0.2
        self.capacity = capacity * self.tokens.sum() / load / capacity.sum()
        self.tiers = tiers
        regions = "|".join(names)
        self.demand = {
            f"edge-{n}": {f"{t}:{regions}": float(d) for t, d in zip(tiers, row, strict=True)}
            for n, row in enumerate(self.tokens)
        }
        lines = [dict(zip(names, row, strict=True)) for row in self.cost.tolist()]
        self.lines = {f"edge-{n}": line for n, line in enumerate(lines)}
        self.room = dict(zip(names, self.capacity.tolist(), strict=True))
        # What fits nowhere: the same price as ours has for the lowest tier, so that totals agree.
        self.shed_ms = (self.cost.max() + 1) * (REGIONS + 1)

    def ours(self) -> float:
        found = assign(self.demand, self.lines, self.room)
        self.found = found
        return 0.0

    def total(self, found: Assignment) -> float:
        """Of an assignment: tokens/s times ms, what is shed at `shed_ms`."""
        out = 0.0
        for edge, classes in found.shares.items():
            for text, spread in classes.items():
                tokens, line = self.demand[edge][text], self.lines[edge]
                out += sum(tokens * part * line[region] for region, part in spread.items())
                out += tokens * found.shed.get(edge, {}).get(text, 0.0) * self.shed_ms
        return out

    def plain_program(self) -> float:
        """Every edge and region a variable, and one for what each edge sheds."""
        edges, width = len(self.cost), REGIONS + 1
        ways = edges * width
        cost = np.concatenate([self.cost, np.full((edges, 1), self.shed_ms)], axis=1)
        index = np.arange(ways).reshape(edges, width)
        bounded = index[:, :REGIONS].ravel()
        ones = np.ones(ways)
        room = csr_array(
            (ones[: len(bounded)], (np.tile(np.arange(REGIONS), edges), bounded)), (REGIONS, ways)
        )
        whole = csr_array((ones, (np.repeat(np.arange(edges), width), index.ravel())))
        done = linprog(
            cost.ravel(), A_ub=room, b_ub=self.capacity, A_eq=whole, b_eq=self.tokens[:, 0],
            method="highs",
        )  # fmt: skip
        assert done.success, done.message
        return float(done.fun)

    def network(self) -> float:
        """Minimum-cost flow. networkx is exact for whole numbers alone: thousandths are."""
        tokens = np.round(self.tokens[:, 0] * 1e3).astype(int)
        graph = networkx.DiGraph()
        for n, amount in enumerate(tokens.tolist()):
            graph.add_node(("e", n), demand=-amount)
            for r, ms in enumerate(self.cost[n].tolist()):
                graph.add_edge(("e", n), ("r", r), weight=round(ms * 1e3))
            graph.add_edge(("e", n), "end", weight=round(float(self.shed_ms) * 1e3))
        for r, room in enumerate(self.capacity.tolist()):
            graph.add_edge(("r", r), "end", weight=0, capacity=round(room * 1e3))
        graph.add_node("end", demand=int(tokens.sum()))
        cost, _ = networkx.network_simplex(graph)
        return float(cost) / 1e6


def timed(work: Callable[[], float], totals: list[float]) -> Sample:
    began, cpu = time.perf_counter(), time.process_time()
    total = work()
    took_s, cpu = time.perf_counter() - began, time.process_time() - cpu
    if total:
        totals.append(total)
    return Sample(took_s * 1e3, notes={"cpu_ms": cpu * 1e3})


def compare(report: Report, scenario: str, world: World, peers: dict[str, Callable[[], float]],
            runs: int, tolerance: float) -> None:  # fmt: skip
    totals: list[float] = []
    sides = {"ours": lambda: timed(world.ours, totals)}
    sides |= {name: (lambda work=work: timed(work, totals)) for name, work in peers.items()}
    report.add(scenario, take_turns(sides, runs, warm_up=len(peers) == 0))
    mine = world.total(world.found)
    for total in totals:
        assert abs(mine - total) <= tolerance * total, (mine, total)
    ours = report.figures[scenario]["sides"]["ours"]
    worst, cpu_ms = ours["high"], ours["notes"]["cpu_ms"]
    if world.demand and len(world.cost) == EDGES:
        verdict = "within" if worst < LIMIT_S * 1e3 else "ABOVE"
        report.note(
            f"{scenario}: {worst:.0f} ms at worst, {verdict} {LIMIT_S:g} s; {cpu_ms:.0f} ms of CPU"
        )


def main() -> None:
    options = arguments(__doc__ or "", runs=3).parse_args()
    report = Report("assignment", unit="ms", lower_is_better=True)
    for load in LOADS:
        world = World(EDGES, load)
        say(f"{EDGES} edges, {REGIONS} regions, demand {load:.0%} of capacity")
        peers = {"scipy linprog": world.plain_program} if load == LOADS[0] else {}
        compare(report, f"load {load:g}", world, peers, options.runs, 1e-6)
    tiers = World(EDGES, LOADS[0], ("vip", "standard", "batch"))
    compare(report, f"load {LOADS[0]:g}, three classes each", tiers, {}, options.runs, 1e-6)
    over = World(EDGES, LOADS[-1], ("vip", "standard", "batch"))
    compare(report, f"load {LOADS[-1]:g}, three classes each", over, {}, options.runs, 1e-6)
    coarse = World(EDGES, LOADS[0], grain_ms=5.0)
    compare(report, "distances in whole 5 ms", coarse, {}, options.runs, 1e-6)
    small = World(EDGES // 50, LOADS[0])
    compare(report, f"{EDGES // 50} edges", small, {"networkx": small.network,
            "scipy linprog": small.plain_program}, options.runs, 1e-4)  # fmt: skip
    report.finish(options.json)


if __name__ == "__main__":
    main()
