"""What became of each request, as its client saw it; one row each, in a file."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from topology.cursor import Tier


class Row(Struct, frozen=True, array_like=True):
    """One request. Seconds since the run began; -1 where something never came."""

    number: int
    phase: str
    due_s: float
    city: str
    tier: Tier
    tenant: str
    deterministic: bool
    streamed: bool
    sends: tuple[float, ...]  # when each try was sent
    status: int  # of the last try; 0: none came
    error: str  # why the last try failed; "" when it did not
    served_by: str
    quality: str
    region: str
    first_s: float  # the first token, or the whole answer where it came in one piece
    done_s: float  # the end: of the answer, or of the client's patience
    ok: bool  # a whole answer came before the client gave that try up
    timeouts: int  # tries that got no answer in time
    refusals: int  # tries that were told 429 or 503
    upstream: bool  # a region is known to have seen it: it answered or refused it
    answer_id: str = ""  # the same for all who share one answer
    cached: str = ""  # the tier of the cache that it says to come from

    @property
    def whole_s(self) -> float:
        """From when it was due to its end."""
        return self.done_s - self.due_s


class Records(Struct, frozen=True, kw_only=True):
    """A population's run."""

    began_s: float  # on the machine's monotonic clock
    rows: tuple[Row, ...]
    lag_p99_ms: float  # how late requests were sent
    lag_max_ms: float
    cpu_s: float  # of the population's own process
    connections_max: int
    wrong: int  # answers that differ from an earlier one to the same deterministic question


def write(path: Path, records: Records) -> None:
    path.write_bytes(msgspec.msgpack.encode(records))


def read(path: Path) -> Records:
    return msgspec.msgpack.decode(path.read_bytes(), type=Records)
