"""From a packet to its answer: what is cached, and for which packets an answer may be repeated.

Three steps, each a dictionary lookup on a hit:

1. `hot`: the whole packet without its ID -> the whole answer without its ID. Where the answer
   depends on who asks (a geo-answered name and no client subnet), the packet leads to
   `BY_ORIGIN`, and the pair (packet, origin) to the answer.
2. `origins`: a client's address or subnet -> its origin.
3. `tailored`: (name, type, origin) -> the sections of the answer, whatever the packet was.

A packet is looked up as it is, and then in the form that `packet.canonical` gives it, so that
neither a random-case name (0x20) nor a cookie makes it a new one. `hot` takes only that form, and
only of answers without an error: random names cost the time of an answer, but push nothing out.

A new snapshot or a change of health makes a new `View`, and empties what depends on it.
"""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple, TypeAlias

from msgspec import Meta, Struct

from control_plane.geodns import packet as wire
from control_plane.geodns.generations import Generations
from control_plane.geodns.lookup import SERVFAIL, GeoName, Sections, View
from control_plane.geodns.origins import Origin, Origins
from control_plane.geodns.packet import Malformed, NoReply, Query
from control_plane.geodns.tally import Tally
from runtime import logs
from topology.geo import Locator

log = logs.get("geodns")

STREAM_BYTES: Final = 65_535
PLAIN_UDP_BYTES: Final = 512  # RFC 1035 section 4.2.1, where the query brings no EDNS
HOT_PACKET_BYTES: Final = 512  # longer ones are nobody's habit


class AnswerSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of answers and caches. A cache holds up to twice its entries."""

    udp_bytes: Annotated[int, Meta(ge=512, le=1452)] = 1232  # most sent over UDP (Flag Day 2020)
    hot_entries: Annotated[int, Meta(ge=1)] = 16_384  # about 500 bytes each
    origin_entries: Annotated[int, Meta(ge=1)] = 65_536  # about 300 bytes each
    tailored_entries: Annotated[int, Meta(ge=1)] = 16_384  # about 400 bytes each


# An answer ready to send: what follows the ID, its size with the ID, and its counter. A plain
# tuple, since unpacking a named one costs the hot loop a tenth of its time.
Hot: TypeAlias = tuple[bytes, int, int]
BY_ORIGIN: Final[Hot] = (b"", 0, 0)
HotKey: TypeAlias = bytes | tuple[bytes, Origin]


class Reply(NamedTuple):
    """An answer and its counter. `repeatable`: it fits any same packet, from `origin` if set."""

    tail: bytes
    slot: int
    repeatable: bool = False
    origin: Origin | None = None


class Answerer:
    """Answers packets from the current view. One event loop, no threads."""

    def __init__(self, locator: Locator, settings: AnswerSettings | None = None) -> None:
        self._settings = settings or AnswerSettings()
        self._view: View | None = None
        self.origins = Origins(locator, self._settings.origin_entries)
        self.hot: Generations[HotKey, Hot] = Generations(self._settings.hot_entries)
        self.tailored: Generations[tuple[bytes, int, Origin], tuple[Sections, bool]] = Generations(
            self._settings.tailored_entries
        )
        self.tally = Tally()
        self.misses = 0  # datagrams that `hot` did not hold
        self.failures = 0  # exceptions that became SERVFAIL

    @property
    def view(self) -> View | None:
        return self._view

    def replace(self, view: View) -> None:
        """Answer from `view` from now on."""
        self._view = view
        self.hot.clear()
        self.tailored.clear()

    def miss(self, key: bytes, client: bytes) -> Hot | None:
        """The answer to a datagram that is not in `hot.young`; None: send none.

        `key` is the datagram without its ID, `client` the packed source address.
        """
        form, end = wire.canonical(key)
        hot = self._find(form, client)
        if hot is None or form == key or not end or not hot[0][wire.QUESTIONS_AT]:
            return hot
        tail, size, slot = hot
        return tail[: wire.NAME_AT] + key[wire.NAME_AT : end] + tail[end:], size, slot

    def _find(self, key: bytes, client: bytes) -> Hot | None:
        hot = self.hot.get(key)
        if hot is BY_ORIGIN:
            hot = self.hot.get((key, self.origins.of_client(client)))
        if hot is not None:
            return hot
        self.misses += 1
        reply = self.reply(b"\0\0" + key, client, stream=False)
        if reply is None:
            return None
        hot = (reply.tail, len(reply.tail) + 2, reply.slot)
        if reply.repeatable and len(key) <= HOT_PACKET_BYTES:
            if reply.origin is None:
                self.hot.put(key, hot)
            else:
                self.hot.put(key, BY_ORIGIN)
                self.hot.put((key, reply.origin), hot)
        return hot

    def reply(self, packet: bytes, client: bytes, *, stream: bool) -> Reply | None:
        """The answer to any bytes whatever; None: send none. Raises nothing."""
        try:
            return self._reply(wire.parse(packet), client, stream)
        except NoReply:
            return None
        except Malformed as error:
            return self._reject(packet, error)
        except Exception as error:  # a request's outermost edge
            self.failures += 1
            if self.failures & (self.failures - 1) == 0:  # the 1st, 2nd, 4th, 8th...: bounded
                log.error("a query failed", failures=self.failures, exc_info=error)
            return self._reject(packet, Malformed(wire.SERVFAIL))

    def _reject(self, packet: bytes, error: Malformed) -> Reply:
        tail = wire.rejection(packet, error, self._settings.udp_bytes)
        return Reply(tail, self.tally.slot(None, error.rcode))

    def _reply(self, query: Query, client: bytes, stream: bool) -> Reply:
        found = SERVFAIL if self._view is None else self._view.look_up(query)
        origin: Origin | None = None
        scope = 0
        if isinstance(found, GeoName):
            subnet = query.edns.subnet if query.edns is not None else None
            by_subnet = subnet is not None and subnet.source > 0
            if by_subnet:
                assert subnet is not None
                origin, scope = self.origins.of_subnet(subnet)
            else:
                origin = self.origins.of_client(client)
            found, same_for_all = self._tailor(found, query, origin)
            if same_for_all:
                scope = 0
            if same_for_all or by_subnet:
                origin = None  # the packet alone decides
        limit = STREAM_BYTES if stream else self._udp_limit(query)
        tail = fit(query, found, scope, limit, self._settings.udp_bytes)
        slot = self.tally.slot(query.rrtype, found.rcode)
        return Reply(tail, slot, found.rcode == wire.NOERROR, origin)

    def _tailor(self, geo: GeoName, query: Query, origin: Origin) -> tuple[Sections, bool]:
        key = (query.name, query.rrtype, origin)
        held = self.tailored.get(key)
        if held is None:
            assert self._view is not None
            held = self._view.tailor(geo, query, origin)
            self.tailored.put(key, held)
        return held

    def _udp_limit(self, query: Query) -> int:
        if query.edns is None:
            return PLAIN_UDP_BYTES
        # RFC 6891 section 6.2.3: less than 512 means 512.
        return min(self._settings.udp_bytes, max(PLAIN_UDP_BYTES, query.edns.udp_bytes))


def fit(query: Query, found: Sections, scope: int, limit: int, udp_bytes: int) -> bytes:
    """The answer from behind its ID, in at most `limit` bytes with it.

    What does not fit loses its additional records first. Then it is truncated to the question
    alone: half a set of addresses would be of no use to anyone (RFC 2181 section 9).
    """
    flags = wire.echo(query.flags) | (wire.AA if found.authoritative else 0)
    opt = wire.opt(query.edns, udp_bytes, scope=scope) if query.edns is not None else b""
    opts = 1 if opt else 0
    body = query.question + found.answers + found.authority
    size = wire.HEADER_BYTES + len(body) + len(opt)
    if size > limit:
        head = wire.header(flags | wire.TC, found.rcode, additionals=opts)
        return head + query.question + opt
    additional, additionals = found.additional, found.additional_count
    if size + len(additional) > limit:
        additional, additionals = b"", 0
    head = wire.header(
        flags, found.rcode, found.answer_count, found.authority_count, additionals + opts
    )
    return head + body + additional + opt
