"""The ways from edges to regions, as the workers that this replica hears told them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import TypeVar

from msgspec import Struct

from control_plane.membership.ladder import NodeLadder
from control_plane.membership.paths import NodePaths
from topology.errors import UnknownName
from topology.paths import PathView, name_of
from topology.routing import RegionView
from topology.snapshot import Snapshot
from topology.wire import path_reports
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb
from topology.wire.path_reports import PathReport

_BYTES_MAX = 2 * 2**20  # of an answer; one node more may follow
_NAMED = 20  # in a hint

T = TypeVar("T")
N = TypeVar("N", NodePaths, NodeLadder)  # what one node told


class Seen(Struct, frozen=True):
    """What an edge sees, from all of its workers. `why`: region -> why its first way is first."""

    views: dict[str, RegionView]
    why: dict[str, str]
    differ: tuple[str, ...]  # where workers go different ways, in words


def seen_by(workers: Iterable[NodePaths]) -> Seen:
    """One view of each region for an edge. A way is up where one worker has it up; the order is
    that of most of them."""
    workers = list(workers)
    views, why, differ = {}, {}, []
    for region in sorted({region for worker in workers for region in worker.regions}):
        told = [worker for worker in workers if region in worker.regions]
        orders = [worker.paths.get(region, ()) for worker in told]
        paths = _merged(orders)
        known = [rtt for w in told if (rtt := w.regions[region].rtt_ms) is not None]
        queues = [worker.queue_ms.get(region, 0.0) for worker in told]
        views[region] = RegionView(
            reachable=any(worker.regions[region].reachable for worker in told),
            rtt_ms=min(known, default=None),
            paths=paths,
            queue_ms=sum(queues) / len(queues),
        )
        firsts = [order[0] for order in orders if order and order[0].up]
        if paths and paths[0].up:
            why[region] = next((f.why for f in firsts if f.relay == paths[0].relay), "")
        ways = {f.relay: sum(g.relay == f.relay for g in firsts) for f in firsts}
        if len(ways) > 1:
            parts = (f"{name_of(relay)} {count}" for relay, count in sorted(ways.items()))
            differ.append(f"the edge's workers reach {region} differently: {', '.join(parts)}")
    return Seen(views, why, tuple(differ))


def _merged(orders: Sequence[Sequence[PathReport]]) -> tuple[PathView, ...]:
    places: dict[str, list[tuple[int, PathReport]]] = {}
    for order in orders:
        for at, path in enumerate(order):
            places.setdefault(path.relay, []).append((at, path))

    def key(relay: str) -> tuple[bool, int, float, str]:
        held = places[relay]
        first = sum(at == 0 and path.up for at, path in held)
        up = any(path.up for _, path in held)
        return not up, -first, sum(at for at, _ in held) / len(held), relay

    return tuple(
        PathView(
            relay=relay,
            up=any(path.up for _, path in places[relay]),
            rtt_ms=_least(path.rtt_ms for _, path in places[relay]),
            extra_ms=min(path.extra_ms for _, path in places[relay]),
        )
        for relay in sorted(places, key=key)
    )


def _least(figures: Iterable[float | None]) -> float | None:
    return min((figure for figure in figures if figure is not None), default=None)


def answer(
    snapshot: Snapshot, heard: Mapping[str, NodePaths], edge: str, region: str, now_s: float
) -> pb.PathsResponse:
    """What `tradewind paths` shows. Raises `UnknownName`."""
    known(edge, snapshot.edges, "EdgeSite")
    known(region, snapshot.regions, "Region")
    response = pb.PathsResponse(now_s=now_s)
    fill(
        response, snapshot, heard, edge, lambda node, told: _add_node(response, node, told, region)
    )
    return response


def fill(
    response: pb.PathsResponse | pb.LadderResponse,
    snapshot: Snapshot,
    heard: Mapping[str, N],
    edge: str,
    add: Callable[[str, N], None],
) -> None:
    """Have `add` put each node of `edge` ("": of all) into `response.edges`, as far as there is
    room, and say who was left out and who was not heard."""
    size = 0
    for node, told in sorted(heard.items(), key=itemgetter(0)):
        if edge and told.edge != edge:
            continue
        if size > _BYTES_MAX:
            response.omitted += 1
            continue
        add(node, told)
        size += response.edges[-1].ByteSize()
    there = {told.edge for told in heard.values()}
    response.unheard.extend(
        name for name in sorted(snapshot.edges) if name not in there and edge in ("", name)
    )


def _add_node(response: pb.PathsResponse, node: str, told: NodePaths, region: str) -> None:
    message = response.edges.add(node=node, heard_s=told.heard_s)
    for name, seen in sorted(told.regions.items()):
        if region in ("", name):
            message.regions.add(
                region=name,
                reachable=seen.reachable,
                rtt_ms=seen.rtt_ms or 0.0,
                queue_ms=told.queue_ms.get(name, 0.0),
                paths=path_reports.to_paths(told.paths.get(name, ())),
            )
    events = [event for event in told.events if region in ("", event.region)]
    message.events.extend(path_reports.to_events(events))


def known(name: str, held: Mapping[str, T], kind: str) -> None:
    if name and name not in held:
        have = sorted(held)
        more = f" and {len(have) - _NAMED} more" if len(have) > _NAMED else ""
        listed = ", ".join(have[:_NAMED]) + more or "none is defined"
        raise UnknownName(f"no {kind} {name!r}", hint=f"there is: {listed}")
