"""What the director decided, as it lies in the store and as replicas hand it to nodes.

One value, so that it is always whole. It survives the director: replicas go on serving it, and
the next director goes on from it.
"""

from __future__ import annotations

import zlib
from typing import TypeVar

import msgspec
from msgspec import Struct

from runtime.validation import InvalidDocument, Problem
from topology.directive import Directive

# Ten thousand edges with three classes each make about 1.5 MB of msgpack and 150 KB deflated.
_MAX_BYTES = 64 * 2**20

T = TypeVar("T")


class Verdict(Struct, frozen=True):
    """Whether a region is up for everybody, since when (Unix seconds), and who says so."""

    up: bool
    since_s: float
    why: str = ""
    flaps: float = 0.0  # the penalty for past changes, as of `since_s`
    doubt_s: float = 0.0  # how long the evidence has spoken against it, as of `doubt_at_s`
    doubt_at_s: float = 0.0  # 0: it does not
    proven: bool = False  # that the region was ever alive


class Drain(Struct, frozen=True):
    """A paced override: where it stands and where it goes."""

    region: str
    percent: float  # what holds now
    target: float
    step_at_s: float  # of the last step, Unix seconds
    paused: str = ""  # why it waits; empty: it goes on
    baseline_ms: dict[str, float] = {}  # receiving region -> first-token time at the start
    override_revision: int = 0  # of the Override that it carries out
    well_since_s: float = 0.0  # while it waits: since when nobody suffers; 0: somebody does


class Wait(Struct, frozen=True):
    """How long something has lasted, counted in small steps: see `quotas.waited`."""

    waited_s: float
    at_s: float  # Unix time up to which it is counted


class Quota(Struct, frozen=True):
    """How one tenant's limit is split, in requests per second by node. What was given counts
    until its loss is acknowledged. See `control_plane.director.quotas`."""

    given: dict[str, float] = {}  # in its newest directive
    floors: dict[str, float] = {}  # in its newest directive: what it keeps when it hears nothing
    held: dict[str, float] = {}  # the most it may still believe it has, where that is not `given`
    floors_held: dict[str, float] = {}  # the largest floor that it may still go by, likewise
    pending: dict[str, int] = {}  # node -> number of the directive that it must acknowledge
    lost: dict[str, Wait] = {}  # of those in `pending`: how long nobody has seen them since

    @property
    def reserved(self) -> float:
        """The most that all nodes together may believe they have: never above the limit."""
        return sum((self.given | self.held).values())


class State(Struct, frozen=True, kw_only=True):
    """Everything a director knows that the next one needs."""

    term: int = 0  # the store's revision at which the director won
    director: str = ""  # the replica
    number: int = 0  # of the newest directive: rises from one director to the next
    at_s: float = 0.0
    shares: dict[str, dict[str, dict[str, float]]] = {}  # edge -> demand class -> region -> share
    shed: dict[str, dict[str, float]] = {}  # edge -> demand class -> share
    verdicts: dict[str, Verdict] = {}  # region
    drains: dict[str, Drain] = {}  # region
    quotas: dict[str, Quota] = {}  # tenant
    # Node -> number of the directive that had the newest word about its quotas: it is to
    # acknowledge that one or a later one.
    numbers: dict[str, int] = {}
    absent: dict[str, Wait] = {}  # nodes with a quota that nobody sees, and for how long
    notes: tuple[str, ...] = ()  # for people: what could not be done, and why


class Outlook(Struct, frozen=True):
    """The load as the director last saw it: what a forecast goes by. Small, however many edges."""

    at_s: float = 0.0
    flows: dict[str, dict[str, float]] = {}  # demand class -> region that serves it -> tokens/s
    utilisation: dict[str, float] = {}  # region -> of its cores, by their own reports; 1 is full
    error_rate: dict[str, float] = {}  # region -> share of requests that failed there
    # region -> mean time to the first token, lately, less the way there and back: which edges
    # send requests to a region changes during a drain, and must not look like a slow region.
    first_token_ms: dict[str, float] = {}
    edges: int = 0  # that reported
    prices: dict[str, float] = {}  # region that is full -> what one more place is worth, in ms
    capacity: dict[str, float] = {}  # region -> tokens/s that it may be given now


def next_number(state: State, now_s: float) -> int:
    """The number of the state that follows. Never one that was used before, not even where the
    state was lost: nodes may have acknowledged any number up to the old one."""
    return max(state.number + 1, int(now_s))


def directive_for(state: State, node: str) -> Directive:
    """What `node` ("edge/tokyo", "edge/tokyo/0", "core/…") is told. Shares go by edge, quotas by
    node."""
    role, _, rest = node.partition("/")
    edge = rest.partition("/")[0] if role == "edge" else ""
    return Directive(
        node=node,
        term=state.term,
        number=state.number,
        shares=state.shares.get(edge, {}),
        shed=state.shed.get(edge, {}),
        # Whole percents: a slow drain is not worth a push to every node each second.
        drains={region: float(round(drain.percent)) for region, drain in state.drains.items()},
        overrides={region: drain.override_revision for region, drain in state.drains.items()},
        down=tuple(sorted(r for r, verdict in state.verdicts.items() if not verdict.up)),
        quotas={t: q.given[node] for t, q in state.quotas.items() if node in q.given},
        floors={t: q.floors[node] for t, q in state.quotas.items() if node in q.floors},
    )


def encode(value: State | Outlook) -> bytes:
    return zlib.compress(msgspec.msgpack.encode(value), 1)


def decode(data: bytes, source: str) -> State:
    """The reverse of `encode`; raises `InvalidDocument`."""
    return _decode(data, source, State)


def decode_outlook(data: bytes, source: str) -> Outlook:
    """The reverse of `encode`; raises `InvalidDocument`."""
    return _decode(data, source, Outlook)


def _decode(data: bytes, source: str, cls: type[T]) -> T:
    try:
        inflate = zlib.decompressobj()
        raw = inflate.decompress(data, _MAX_BYTES)
        if inflate.unconsumed_tail:
            raise InvalidDocument([Problem(source, "", "more", f"at most {_MAX_BYTES} bytes")])
        return msgspec.msgpack.decode(raw, type=cls)
    except (zlib.error, msgspec.MsgspecError) as error:
        raise InvalidDocument([Problem(source, "", str(error), "a director's word")]) from error
