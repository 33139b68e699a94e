"""DNS messages on the wire: reading queries, writing headers and records. No I/O, no policy.

Written by hand since this is the path of every query that the answer cache does not hold;
`tests/geodns` checks it against dnspython. Work is bounded by the length of the packet.

RFC 1035 (messages), 6891 (EDNS), 7871 (client subnet).
"""

from __future__ import annotations

import struct
from typing import Final

from msgspec import Struct

HEADER_BYTES: Final = 12
NAME_AT: Final = HEADER_BYTES - 2  # in a packet without its ID
QUESTIONS_AT: Final = 3  # the low byte of QDCOUNT, likewise
MAX_NAME_BYTES: Final = 255
MAX_ADDITIONAL: Final = 8  # a query carries OPT and perhaps TSIG; more is not a query

A: Final = 1
NS: Final = 2
SOA: Final = 6
HINFO: Final = 13
AAAA: Final = 28
OPT: Final = 41
IXFR: Final = 251
AXFR: Final = 252
ANY: Final = 255
CLASS_IN: Final = 1

NOERROR: Final = 0
FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5
BADVERS: Final = 16

QR: Final = 0x8000
OPCODE: Final = 0x7800
AA: Final = 0x0400
TC: Final = 0x0200
RD: Final = 0x0100
CD: Final = 0x0010

_ECS: Final = 8  # EDNS option code, RFC 7871 section 6
_DO: Final = 0x8000

_OPTIONS_AT: Final = 16  # behind a name's end: type, class, and the head of an OPT record

_COUNTS = struct.Struct("!HHHHH")  # flags and the four counts, after the ID
_TYPE_CLASS = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")  # type, class, TTL, length of the data
_OPTION = struct.Struct("!HH")


class ClientSubnet(Struct, frozen=True):
    """An ECS option as the query gave it. `address` holds `ceil(source / 8)` bytes."""

    family: int  # 1 IPv4, 2 IPv6; 0 with no address: "do not use mine"
    source: int
    address: bytes

    def packed(self) -> bytes:
        """The network address: 4 or 16 bytes."""
        return self.address.ljust(4 if self.family == 1 else 16, b"\0")


class Edns(Struct, frozen=True):
    """What the OPT record says."""

    udp_bytes: int
    version: int
    dnssec_ok: bool
    subnet: ClientSubnet | None


class Query(Struct, frozen=True):
    """A well-formed query of one question. Names are in wire form, without compression."""

    flags: int
    question: bytes  # name as sent, type, class: what the answer repeats byte for byte
    name: bytes  # in lower case, for looking up
    rrtype: int
    rrclass: int
    edns: Edns | None


class Malformed(Exception):
    """A query to be answered with an error. `question` and `edns` are what could be read."""

    def __init__(self, rcode: int, question: bytes = b"", edns: Edns | None = None) -> None:
        super().__init__(rcode)
        self.rcode = rcode
        self.question = question
        self.edns = edns


class NoReply(Exception):
    """A packet that gets no answer: shorter than a header, or a response itself."""


def parse(packet: bytes) -> Query:
    """Read a query; raises `NoReply` or `Malformed`."""
    if len(packet) < HEADER_BYTES:
        raise NoReply
    flags, questions, answers, authorities, additionals = _COUNTS.unpack_from(packet, 2)
    if flags & QR:
        raise NoReply
    if flags & OPCODE:
        raise Malformed(NOTIMP)
    if questions != 1:
        raise Malformed(FORMERR)
    end = _end_of_question(packet)
    question = packet[HEADER_BYTES:end]
    rrtype, rrclass = _TYPE_CLASS.unpack_from(packet, end - 4)
    # Only IXFR brings an authority record along (RFC 1995 section 3).
    if answers or authorities > 1 or additionals > MAX_ADDITIONAL or rrtype == OPT:
        raise Malformed(FORMERR, question)
    edns = None
    if additionals or authorities or end != len(packet):
        edns = _parse_rest(packet, end, authorities, additionals, question)
    name = question[:-4].lower()  # length bytes are below 64, so only letters change
    query = Query(flags, question, name, rrtype, rrclass, edns)
    if edns is not None and edns.version:
        raise Malformed(BADVERS, question, edns)
    return query


def canonical(key: bytes) -> tuple[bytes, int]:
    """The form in which a packet without its ID is cached, and where its name ends.

    The name is in lower case, and EDNS options that change no answer (cookies, padding, NSID:
    all but the client subnet) are left out. A packet of which that cannot be said stays as it
    is, and its end is 0. So two packets of one form have one answer, but for the case of the
    name; resolvers draw that at random and check it (0x20).
    """
    at, size = NAME_AT, len(key)
    while at < size and (length := key[at]):
        if length > 63:
            return key, 0
        at += 1 + length
    if at >= size:
        return key, 0
    rest = key[at:]
    # Root, type and class end the question; root and type 41 begin an OPT record.
    if len(rest) > _OPTIONS_AT and rest[5:8] == b"\0\0\x29":
        rest = _without_ignored(rest)
    return key[:NAME_AT] + key[NAME_AT:at].lower() + rest, at


def _without_ignored(rest: bytes) -> bytes:
    """What follows a name, without options that are ignored; as it is where they do not fit."""
    size = len(rest)
    if int.from_bytes(rest[_OPTIONS_AT - 2 : _OPTIONS_AT], "big") != size - _OPTIONS_AT:
        return rest
    kept = b""
    at = _OPTIONS_AT
    while at < size:
        if at + 4 > size:
            return rest
        code, length = _OPTION.unpack_from(rest, at)
        end = at + 4 + length
        if end > size:
            return rest
        if code == _ECS:
            kept += rest[at:end]
        at = end
    return rest[: _OPTIONS_AT - 2] + len(kept).to_bytes(2, "big") + kept


def _end_of_question(packet: bytes) -> int:
    """The offset behind the question. Compression has nothing to point at, so it is an error."""
    at, size = HEADER_BYTES, len(packet)
    while at < size:
        length = packet[at]
        if length > 63:
            break
        at += 1 + length
        if not length:
            if at + 4 <= size and at - HEADER_BYTES <= MAX_NAME_BYTES:
                return at + 4
            break
    raise Malformed(FORMERR)


def _parse_rest(
    packet: bytes, at: int, authorities: int, additionals: int, question: bytes
) -> Edns | None:
    """Walk the records behind the question to their very end; returns the OPT record's content."""
    edns: Edns | None = None
    size = len(packet)
    for index in range(authorities + additionals):
        owner = at
        at = _skip_name(packet, at)
        if at + 10 > size:
            raise Malformed(FORMERR, question)
        rrtype, rrclass, ttl, length = _RECORD.unpack_from(packet, at)
        at += 10
        if at + length > size:
            raise Malformed(FORMERR, question)
        if rrtype == OPT:
            # RFC 6891 section 6.1.1: one, in the additional section, owned by the root.
            if edns is not None or index < authorities or packet[owner]:
                raise Malformed(FORMERR, question)
            edns = _parse_opt(packet[at : at + length], rrclass, ttl, question)
        at += length
    if at != size:
        raise Malformed(FORMERR, question)
    return edns


def _skip_name(packet: bytes, at: int) -> int:
    start, size = at, len(packet)
    while at < size:
        length = packet[at]
        if length >= 0xC0:
            return at + 2
        at += 1 + length
        if length > 63 or at - start > MAX_NAME_BYTES:
            break
        if not length:
            return at
    raise Malformed(FORMERR)


def _parse_opt(data: bytes, rrclass: int, ttl: int, question: bytes) -> Edns:
    version = (ttl >> 16) & 0xFF
    dnssec_ok = bool(ttl & _DO)
    subnet: ClientSubnet | None = None
    at, size = 0, len(data)
    if version:
        at = size  # nothing is known about the options of other versions
    while at < size:
        code, length = _OPTION.unpack_from(data, at) if at + 4 <= size else (0, size)
        end = at + 4 + length
        value = None
        if code == _ECS and end <= size and subnet is None:
            subnet = value = _parse_subnet(data[at + 4 : end])
        if end > size or (code == _ECS and value is None):
            raise Malformed(FORMERR, question, Edns(rrclass, version, dnssec_ok, None))
        at = end
    return Edns(rrclass, version, dnssec_ok, subnet)


def _parse_subnet(data: bytes) -> ClientSubnet | None:
    """RFC 7871 sections 6 and 7.2.1: exact length, no bits beyond the prefix, scope 0."""
    if len(data) < 4:
        return None
    family, source, scope = (data[0] << 8) | data[1], data[2], data[3]
    address = data[4:]
    # Family 0 without an address is what `dig +subnet=0` sends; the RFC knows no such family,
    # but its meaning is clear and other servers take it.
    most = {0: 0, 1: 32, 2: 128}.get(family, -1)
    if scope or source > most or len(address) != (source + 7) // 8:
        return None
    if source % 8 and address[-1] & (0xFF >> source % 8):
        return None
    return ClientSubnet(family, source, address)


def header(
    flags: int, rcode: int, answers: int = 0, authorities: int = 0, additionals: int = 0
) -> bytes:
    """The header of an answer to one question, from behind the ID."""
    return _COUNTS.pack(flags | (rcode & 0xF), 1, answers, authorities, additionals)


def echo(flags: int) -> int:
    """Flags of the query that its answer repeats, and QR."""
    return QR | (flags & (OPCODE | RD | CD))


def record(owner: bytes, rrtype: int, ttl_s: int, data: bytes) -> bytes:
    return owner + _RECORD.pack(rrtype, CLASS_IN, ttl_s, len(data)) + data


def opt(edns: Edns, udp_bytes: int, rcode: int = 0, scope: int | None = None) -> bytes:
    """The OPT record that answers one; with the subnet echoed where `scope` is given."""
    ttl = (rcode >> 4) << 24 | (_DO if edns.dnssec_ok else 0)
    data = b""
    if scope is not None and edns.subnet is not None:
        subnet = edns.subnet
        data = struct.pack(
            "!HHHBB", _ECS, 4 + len(subnet.address), subnet.family, subnet.source, scope
        )
        data += subnet.address
    return b"\0" + _RECORD.pack(OPT, udp_bytes, ttl, len(data)) + data


def rejection(packet: bytes, error: Malformed, udp_bytes: int) -> bytes:
    """The answer to a malformed query, from behind the ID: as much as could be understood."""
    flags = echo((packet[2] << 8) | packet[3])
    extra = opt(error.edns, udp_bytes, error.rcode) if error.edns is not None else b""
    counts = (1 if error.question else 0, 0, 0, 1 if extra else 0)
    return _COUNTS.pack(flags | (error.rcode & 0xF), *counts) + error.question + extra


def wire_name(text: str) -> bytes:
    """A host name in wire form and lower case; a trailing dot changes nothing.

    Raises `ValueError` where it has none: not ASCII, an empty or long label, a long name.
    """
    labels = text.rstrip(".").lower().split(".")
    wire = b"".join(_label(label) for label in labels) + b"\0"
    if len(wire) > MAX_NAME_BYTES:
        raise ValueError(f"longer than {MAX_NAME_BYTES} bytes")
    return wire


def mailbox(address: str) -> bytes:
    """An e-mail address as SOA's RNAME: the part before the @ is one label (RFC 1035 s. 8).

    Raises `ValueError` as `wire_name` does.
    """
    local, _, domain = address.partition("@")
    return _label(local) + wire_name(domain)


def _label(text: str) -> bytes:
    label = text.encode("ascii")
    if not 1 <= len(label) <= 63:
        raise ValueError(f"label {text!r} is not 1 to 63 bytes long")
    return bytes([len(label)]) + label
