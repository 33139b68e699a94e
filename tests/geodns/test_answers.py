"""Answers to packets: a table of cases, dnspython as the oracle, and anything at all."""

from __future__ import annotations

import ipaddress
import random
import struct
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from control_plane.geodns import packet as wire
from control_plane.geodns.answers import Answerer, AnswerSettings
from control_plane.geodns.errors import InvalidZone
from control_plane.geodns.lookup import View
from tests.geodns.oracle import UDP_BYTES, expected
from tests.geodns.worlds import ALL, ZONE, edge, snapshot, table, zone
from topology.snapshot import Snapshot

CHILD = zone("eu.sub.tradewind.test", names=[{"name": "@", "edges": ["*"], "answers": 1}])
SNAPSHOT = snapshot(CHILD)
CLIENT = "198.18.4.9"  # London


def answerer(
    held: Snapshot | None = None, healthy: frozenset[str] = ALL, **limits: int
) -> Answerer:
    made = Answerer(table(), AnswerSettings(**limits))
    made.replace(View.of(SNAPSHOT if held is None else held, healthy))
    return made


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def raw(made: Answerer, data: bytes, *, stream: bool = False, client: str = CLIENT) -> bytes | None:
    reply = made.reply(data, packed(client), stream=stream)
    return None if reply is None else data[:2] + reply.tail


def ask(
    name: str = f"api.{ZONE}", kind: str = "A", made: Answerer | None = None, **how: Any
) -> dns.message.Message:
    client = how.pop("client", CLIENT)
    stream = how.pop("stream", False)
    query = dns.message.make_query(name, kind, **how)
    data = raw(made or answerer(), query.to_wire(), stream=stream, client=client)
    assert data is not None
    answer = dns.message.from_wire(data)
    assert query.is_response(answer)
    return answer


def texts(answer: dns.message.Message) -> list[str]:
    return [item.to_text() for rrset in answer.answer for item in rrset]


@pytest.mark.parametrize(
    ("name", "kind", "rcode", "answers"),
    [
        ("api.tradewind.test", "A", "NOERROR", ["192.0.2.4", "192.0.2.3"]),
        ("api.tradewind.test", "AAAA", "NOERROR", ["2001:db8::4"]),  # Riyadh has none
        ("deep.er.tradewind.test", "A", "NOERROR", ["192.0.2.1"]),
        ("er.tradewind.test", "A", "NOERROR", []),  # empty non-terminal
        ("sub.tradewind.test", "A", "NOERROR", []),  # only a step to the child zone
        ("eu.sub.tradewind.test", "A", "NOERROR", ["192.0.2.4"]),
        ("nothing.tradewind.test", "A", "NXDOMAIN", []),
        ("x.api.tradewind.test", "A", "NXDOMAIN", []),
        ("api.tradewind.test", "TXT", "NOERROR", []),
        ("tradewind.test", "A", "NOERROR", []),
        ("tradewind.test", "NS", "NOERROR", ["ns1.tradewind.test.", "ns2.dns.example."]),
        ("ns1.tradewind.test", "A", "NOERROR", ["192.0.2.53"]),
        ("ns1.tradewind.test", "AAAA", "NOERROR", ["2001:db8::53"]),
        ("ns1.tradewind.test", "MX", "NOERROR", []),
        ("api.tradewind.test", "ANY", "NOERROR", ['"RFC8482" ""']),
        ("tradewind.test", "ANY", "NOERROR", ['"RFC8482" ""']),
        ("er.tradewind.test", "ANY", "NOERROR", []),
        ("tradewind.test", "AXFR", "REFUSED", []),
        ("tradewind.test", "TYPE250", "REFUSED", []),
        ("example.com", "A", "REFUSED", []),
        ("test", "A", "REFUSED", []),
        (".", "NS", "REFUSED", []),
        ("nottradewind.test", "A", "REFUSED", []),
    ],
)
def test_what_is_answered(name: str, kind: str, rcode: str, answers: list[str]) -> None:
    answer = ask(name, kind)
    assert dns.rcode.to_text(answer.rcode()) == rcode
    assert texts(answer) == answers
    refused = rcode == "REFUSED"
    assert bool(answer.flags & dns.flags.AA) != refused
    negative = not answers and not refused
    assert [r.rdtype for r in answer.authority] == ([dns.rdatatype.SOA] if negative else [])


def test_the_start_of_authority() -> None:
    [text] = texts(ask(ZONE, "SOA"))
    assert text == (r"ns1.tradewind.test. host\.master.tradewind.test. 7 3600 600 604800 15")
    negative = ask(f"nothing.{ZONE}")
    assert negative.authority[0].ttl == 15
    assert negative.authority[0].name == dns.name.from_text(ZONE)


def test_name_servers_bring_their_addresses_along() -> None:
    additional = ask(ZONE, "NS").additional
    assert [r.to_text() for r in additional] == [
        "ns1.tradewind.test. 30 IN A 192.0.2.53",
        "ns1.tradewind.test. 30 IN AAAA 2001:db8::53",
    ]


def test_addresses_carry_the_zones_ttl() -> None:
    assert ask().answer[0].ttl == 30


@pytest.mark.parametrize(("rdclass", "name"), [("CH", "version.bind"), ("CH", f"api.{ZONE}"),
                                               ("ANY", f"api.{ZONE}"), ("HS", ZONE)])  # fmt: skip
def test_other_classes_are_refused(rdclass: str, name: str) -> None:
    answer = ask(name, "TXT", rdclass=rdclass)
    assert answer.rcode() == dns.rcode.REFUSED


def test_without_a_snapshot_the_client_is_sent_to_another_server() -> None:
    assert ask(made=Answerer(table())).rcode() == dns.rcode.SERVFAIL


def ecs(text: str, scope: int = 0) -> dns.edns.ECSOption:
    option = dns.edns.ECSOption.from_text(text)
    return dns.edns.ECSOption(option.address, option.srclen, scope)


@pytest.mark.parametrize(
    ("subnet", "first", "scope"),
    [
        ("198.18.1.0/24", "192.0.2.1", 24),
        ("203.0.113.0/24", "192.0.2.2", 24),
        ("203.0.0.0/16", "192.0.2.6", 18),  # the answer does not hold in all of the /16
        ("203.0.113.128/25", "192.0.2.2", 24),
        ("203.0.113.7/32", "192.0.2.2", 24),
        ("2001:db8:1ff::/48", "192.0.2.4", 40),
    ],
)
def test_client_subnets_choose_and_are_echoed_with_their_scope(
    subnet: str, first: str, scope: int
) -> None:
    answer = ask(options=[ecs(subnet)])
    assert texts(answer)[0] == first
    [option] = answer.options
    assert isinstance(option, dns.edns.ECSOption)
    assert f"{option.address}/{option.srclen}" == subnet
    assert option.scopelen == scope


def scope_of(answer: dns.message.Message) -> int:
    [option] = answer.options
    assert isinstance(option, dns.edns.ECSOption)
    return option.scopelen


def test_a_subnet_in_no_table_holds_for_itself() -> None:
    assert scope_of(ask(options=[ecs("8.8.8.0/24")])) == 24
    assert scope_of(ask(options=[ecs("8.8.0.0/17")])) == 17


@pytest.mark.parametrize(
    ("name", "kind"),
    [(f"one.{ZONE}", "A"), (ZONE, "SOA"), (f"nothing.{ZONE}", "A"), ("example.com", "A")],
)
def test_what_is_the_same_for_all_has_scope_0(name: str, kind: str) -> None:
    assert scope_of(ask(name, kind, options=[ecs("198.18.1.0/24")])) == 0


def test_a_subnet_of_length_0_means_the_resolver_itself() -> None:
    answer = ask(options=[ecs("0.0.0.0/0")])
    assert texts(answer)[0] == "192.0.2.4"
    assert scope_of(answer) == 0


def test_no_data_may_depend_on_the_client_too() -> None:
    # Near Sao Paulo and Riyadh no edge has IPv6 (with Riyadh and Sao Paulo alone healthy).
    made = answerer(healthy=frozenset({"riyadh", "sao-paulo"}))
    answer = ask(kind="AAAA", made=made, options=[ecs("198.18.1.0/24")])
    assert texts(answer) == []
    assert scope_of(answer) == 24


def edns_query(option: bytes = b"", *, version: int = 0, size: int = 1232, flags: int = 0) -> bytes:
    """A query for api with a hand-written OPT record."""
    query = dns.message.make_query(f"api.{ZONE}", "A", id=7, use_edns=False).to_wire()
    opt = b"\0" + struct.pack("!HHBBHH", 41, size, 0, version, flags, len(option)) + option
    return query[:10] + b"\0\1" + query[12:] + opt


def subnet_option(family: int, source: int, scope: int, address: bytes) -> bytes:
    return struct.pack("!HHHBB", 8, 4 + len(address), family, source, scope) + address


@pytest.mark.parametrize(
    ("option", "rcode"),
    [
        (subnet_option(1, 24, 0, bytes([198, 18, 1])), "NOERROR"),
        (subnet_option(2, 40, 0, bytes.fromhex("20010db801")), "NOERROR"),
        (subnet_option(1, 0, 0, b""), "NOERROR"),
        (subnet_option(3, 24, 0, bytes([198, 18, 1])), "FORMERR"),  # no such family
        (subnet_option(0, 8, 0, b"\1"), "FORMERR"),
        (subnet_option(1, 33, 0, bytes(5)), "FORMERR"),
        (subnet_option(2, 129, 0, bytes(17)), "FORMERR"),
        (subnet_option(1, 24, 8, bytes([198, 18, 1])), "FORMERR"),  # scope in a query
        (subnet_option(1, 24, 0, bytes([198, 18])), "FORMERR"),  # too short
        (subnet_option(1, 24, 0, bytes([198, 18, 1, 0])), "FORMERR"),  # too long
        (subnet_option(1, 23, 0, bytes([198, 18, 1])), "FORMERR"),  # bits beyond the prefix
        (subnet_option(1, 22, 0, bytes([198, 18, 4])), "NOERROR"),
        (2 * subnet_option(1, 24, 0, bytes([198, 18, 1])), "FORMERR"),
        (b"\0\x08\0\0", "FORMERR"),
        (b"\0\x08\0\x03\0\1\x18", "FORMERR"),
        (b"\0\x0a\0\x08abcdefgh", "NOERROR"),  # a cookie, which we leave alone
        (b"\0\x0a\0\xff", "FORMERR"),  # longer than the record
        (b"\0", "FORMERR"),
    ],
)
def test_options_are_checked(option: bytes, rcode: str) -> None:
    data = raw(answerer(), edns_query(option))
    assert data is not None
    answer = dns.message.from_wire(data)
    assert dns.rcode.to_text(answer.rcode()) == rcode
    assert answer.edns == 0
    assert answer.question[0].name == dns.name.from_text(f"api.{ZONE}")


def test_the_family_that_dig_sends_for_no_subnet_is_echoed() -> None:
    option = subnet_option(0, 0, 0, b"")  # dig +subnet=0; dnspython cannot read it
    data = raw(answerer(), edns_query(option))
    assert data is not None
    assert data[3] & 15 == 0
    assert data.endswith(option)


def test_other_edns_versions_get_badvers() -> None:
    data = raw(answerer(), edns_query(version=1))
    assert data is not None
    answer = dns.message.from_wire(data)
    assert (answer.rcode(), answer.edns, answer.answer) == (dns.rcode.BADVERS, 0, [])


def test_the_do_bit_is_repeated_and_no_other() -> None:
    data = raw(answerer(), edns_query(flags=0xFFFF))
    assert data is not None
    assert dns.message.from_wire(data).ednsflags == 0x8000


def test_no_edns_no_opt() -> None:
    assert ask(use_edns=False).edns == -1
    assert ask(use_edns=0).payload == UDP_BYTES


PLAIN = dns.message.make_query(f"api.{ZONE}", "A", id=0x1234, use_edns=False).to_wire()
OPT = edns_query()[len(PLAIN) :]


def changed(at: int, value: bytes) -> bytes:
    return PLAIN[:at] + value + PLAIN[at + len(value) :]


@pytest.mark.parametrize(
    ("data", "rcode"),
    [
        (b"", None),
        (PLAIN[:11], None),  # shorter than a header
        (changed(2, b"\x80"), None),  # a response
        (PLAIN[:12], "FORMERR"),
        (PLAIN[:-1], "FORMERR"),
        (PLAIN + b"\0", "FORMERR"),  # something behind the question
        (changed(4, b"\0\0"), "FORMERR"),  # no question
        (changed(4, b"\0\2"), "FORMERR"),  # two
        (changed(6, b"\0\1"), "FORMERR"),  # an answer in a query
        (changed(8, b"\0\2"), "FORMERR"),
        (changed(10, b"\0\1"), "FORMERR"),  # an additional record that is not there
        (changed(10, b"\xff\xff"), "FORMERR"),
        (changed(10, b"\0\2") + OPT + OPT, "FORMERR"),  # two OPT
        (changed(8, b"\0\1") + OPT, "FORMERR"),  # OPT in the authority section
        (changed(10, b"\0\1") + b"\1x" + OPT, "FORMERR"),  # OPT that is not the root's
        (changed(12, b"\xc0\x0c"), "FORMERR"),  # a pointer to itself
        (changed(12, b"\x40"), "FORMERR"),  # a label of no known kind
        (changed(2, b"\x28"), "NOTIMP"),  # UPDATE
        (changed(2, b"\x20"), "NOTIMP"),  # NOTIFY
        (changed(2, b"\x10"), "NOTIMP"),  # STATUS
        (changed(2, b"\x03\x80"), "NOERROR"),  # TC and RA mean nothing in a query
        (PLAIN[:12] + b"\x3f" + b"a" * 63 + PLAIN[12:], "NXDOMAIN"),
        (PLAIN[:12] + 4 * (b"\x3f" + b"a" * 63) + PLAIN[12:], "FORMERR"),  # 276 bytes
        (PLAIN[:-4] + b"\0\x29\0\1", "FORMERR"),  # OPT is no question
    ],
)
def test_malformed_packets(data: bytes, rcode: str | None) -> None:
    got = raw(answerer(), data)
    if rcode is None:
        assert got is None
        return
    assert got is not None
    answer = dns.message.from_wire(got)
    assert dns.rcode.to_text(answer.rcode()) == rcode
    assert answer.id == 0x1234
    assert answer.opcode() == (data[2] >> 3) & 15
    assert answer.flags & dns.flags.QR


def test_a_transfer_by_ixfr_is_refused_although_it_brings_a_record() -> None:
    query = dns.message.make_query(ZONE, "IXFR")
    query.authority.append(
        dns.rrset.from_text(ZONE + ".", 0, "IN", "SOA", "a. b. 1 2 3 4 5")  # type: ignore[attr-defined]
    )
    data = raw(answerer(), query.to_wire())
    assert data is not None
    assert dns.message.from_wire(data).rcode() == dns.rcode.REFUSED


def crowd(count: int) -> Snapshot:
    """A zone whose answer has `count` addresses."""
    addresses = [f"192.0.2.{i}" for i in range(count)]
    return snapshot(edge("london", addresses))


@pytest.mark.parametrize(
    ("count", "payload", "truncated"),
    [
        (28, None, False),  # 12 + 24 + 28 * 16 = 484
        (30, None, True),  # 516
        (30, 512, True),
        (30, 1232, False),
        (70, 1232, False),  # 12 + 24 + 70 * 16 + 11 = 1167
        (75, 1232, True),
        (75, 4096, True),  # never more than 1232 over UDP
        (28, 100, False),  # less than 512 means 512
    ],
)
def test_truncation_at_the_clients_size(count: int, payload: int | None, truncated: bool) -> None:
    made = answerer(crowd(count))
    how: dict[str, Any] = {"use_edns": False} if payload is None else {"payload": payload}
    answer = ask(f"one.{ZONE}", made=made, **how)
    assert bool(answer.flags & dns.flags.TC) == truncated
    assert len(texts(answer)) == (0 if truncated else count)
    assert answer.edns == (-1 if payload is None else 0)
    whole = ask(f"one.{ZONE}", made=made, stream=True, **how)
    assert not whole.flags & dns.flags.TC
    assert len(texts(whole)) == count


def test_additional_records_are_left_out_before_anything_is_truncated() -> None:
    servers = [{"name": f"ns{i}.{ZONE}", "addresses": [f"192.0.2.{i}"]} for i in range(12)]
    made = answerer(snapshot(zone(nameservers=servers)))
    answer = ask(ZONE, "NS", made=made, use_edns=False)
    assert not answer.flags & dns.flags.TC
    assert len(texts(answer)) == 12
    assert answer.additional == []
    assert len(ask(ZONE, "NS", made=made, stream=True).additional) == 12


def test_an_amplified_answer_is_small() -> None:
    query = dns.message.make_query(ZONE, "ANY", payload=4096).to_wire()
    got = raw(answerer(), query)
    assert got is not None
    assert len(got) < 2 * len(query)


# --- Against dnspython ------------------------------------------------------------------------

NAMES = [
    f"api.{ZONE}", f"one.{ZONE}", f"deep.er.{ZONE}", f"er.{ZONE}", ZONE, f"ns1.{ZONE}",
    f"no.{ZONE}", f"a.b.c.d.{ZONE}", "eu.sub." + ZONE, "x.eu.sub." + ZONE, "sub." + ZONE,
    "ns1.eu.sub." + ZONE, "example.com", "test", ".",
]  # fmt: skip
KINDS = ["A", "AAAA", "NS", "SOA", "ANY", "TXT", "HINFO", "DS", "HTTPS", "AXFR", "TYPE65280"]
SUBNETS = [None, "198.18.1.0/24", "203.0.0.0/16", "203.0.113.4/30", "8.8.8.0/24", "0.0.0.0/0",
           "2001:db8:1ff::/48", "2001:db8::/33", "::ffff:203.0.113.0/120", "::/0"]  # fmt: skip


@st.composite
def queries(draw: st.DrawFn) -> dns.message.Message:
    name = draw(st.sampled_from(NAMES))
    seed = draw(st.integers(0, 3))
    mixed = random.Random(seed)
    if seed:  # 0x20: every letter in a case of its own
        name = "".join(c.upper() if mixed.random() < 0.5 else c for c in name)
    query = dns.message.make_query(
        name,
        draw(st.sampled_from(KINDS)),
        rdclass=draw(st.sampled_from(["IN", "IN", "IN", "IN", "CH"])),
        use_edns=False,
    )
    query.flags = draw(
        st.sampled_from([0, dns.flags.RD, dns.flags.CD | dns.flags.RD, dns.flags.AD])
    )
    subnet = draw(st.sampled_from(SUBNETS))
    options: list[dns.edns.Option] = [] if subnet is None else [ecs(subnet)]
    if draw(st.booleans()):
        options.append(dns.edns.GenericOption(10, bytes(draw(st.binary(min_size=8, max_size=8)))))
    if options or draw(st.booleans()):
        do = draw(st.sampled_from([0, 0x8000]))
        query.use_edns(0, do, draw(st.sampled_from([512, 1232, 4096])), options=options)
    return query


clients = st.sampled_from(["198.18.1.9", "198.18.4.9", "8.8.8.8", "127.0.0.1", "2001:db8:100::1"])
states = st.sampled_from([ALL, ALL - {"london"}, frozenset(), frozenset({"sydney", "tokyo"})])


def meaning(message: dns.message.Message) -> Any:
    """All of a message, with the records of each section in order.

    Answers repeat the case of the question. Other owners may: they are compressed into it.
    """
    sections: list[list[str]] = [[rrset.to_text() for rrset in message.answer]]
    for section in (message.authority, message.additional):
        sections.append([rrset.to_text().lower() for rrset in section])
    return (
        message.id, message.flags, message.rcode(), message.edns, message.ednsflags & 0x8000,
        message.payload, [o.to_text() for o in message.options],
        [(q.name.to_text(), q.rdtype, q.rdclass) for q in message.question], sections,
    )  # fmt: skip


@given(queries(), clients, states)
def test_answers_agree_with_the_oracle(
    query: dns.message.Message, client: str, healthy: frozenset[str]
) -> None:
    data = raw(answerer(healthy=healthy), query.to_wire(), stream=True, client=client)
    assert data is not None
    want = expected(query, SNAPSHOT, healthy, table(), client)
    assert meaning(dns.message.from_wire(data)) == meaning(want)
    assert data[12 : 12 + len(query.to_wire()) - 12].startswith(question_of(query))


def question_of(query: dns.message.Message) -> bytes:
    """The question as sent, case and all."""
    bare = dns.message.make_query(
        query.question[0].name, query.question[0].rdtype, query.question[0].rdclass, use_edns=False
    )
    return bare.to_wire()[12:]


class Cached:
    """Answers as the datagram endpoints do: from the packet cache where it can."""

    def __init__(self, made: Answerer) -> None:
        self.made = made

    def ask(self, data: bytes, client: str) -> bytes | None:
        hot = self.made.miss(data[2:], packed(client))
        return None if hot is None else data[:2] + hot[0]


@given(st.lists(st.tuples(queries(), clients), min_size=1, max_size=30), states, states)
def test_caches_change_nothing(
    asked: list[tuple[dns.message.Message, str]], first: frozenset[str], then: frozenset[str]
) -> None:
    # Tiny caches, so that generations turn all the time.
    cached = Cached(answerer(healthy=first, hot_entries=3, origin_entries=2, tailored_entries=2))
    for healthy in (first, then):
        view = cached.made.view
        assert view is not None
        cached.made.replace(view.with_health(healthy))
        for query, client in asked + asked:
            data = query.to_wire()
            assert cached.ask(data, client) == raw(answerer(healthy=healthy), data, client=client)


def test_only_what_repeats_is_kept() -> None:
    made = answerer()
    cached = Cached(made)
    lower = dns.message.make_query(f"api.{ZONE}", "A", use_edns=False)
    mixed = dns.message.make_query(f"aPi.{ZONE}", "A", use_edns=False)
    cookie = dns.message.make_query(
        f"api.{ZONE}", "A", options=[dns.edns.GenericOption(10, b"12345678")]
    )
    missing = dns.message.make_query(f"no.{ZONE}", "A", use_edns=False)
    for query in (mixed, cookie, missing):
        cached.ask(query.to_wire(), CLIENT)
        assert len(made.hot) == 0
    cached.ask(lower.to_wire(), CLIENT)
    assert len(made.hot) == 2  # that it depends on the origin, and the answer for this one
    cached.ask(lower.to_wire(), "198.18.1.1")
    assert len(made.hot) == 3
    misses = made.misses
    cached.ask(lower.to_wire(), "198.18.1.200")  # another client of the same place
    assert made.misses == misses


def test_a_malformed_packet_never_takes_the_place_of_a_good_one() -> None:
    cached = Cached(answerer())
    good = dns.message.make_query(f"api.{ZONE}", "A", use_edns=False).to_wire()
    want = cached.ask(good, CLIENT)
    for junk in range(256):
        cached.ask(good + bytes([junk]), CLIENT)
    assert cached.ask(good, CLIENT) == want


def test_caches_are_bounded() -> None:
    made = answerer(hot_entries=10, origin_entries=10, tailored_entries=10)
    cached = Cached(made)
    for index in range(500):
        subnet = ecs(f"10.{index // 256}.{index % 256}.0/24")
        query = dns.message.make_query(f"api.{ZONE}", "A", options=[subnet])
        cached.ask(query.to_wire(), f"172.16.{index % 256}.1")
    assert len(made.hot) <= 20
    assert len(made.tailored) <= 20
    assert len(made.origins.known) <= 20


# --- Anything at all --------------------------------------------------------------------------


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(queries()).to_wire())
    for _ in range(draw(st.integers(0, 8))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 3)):
            case 0 if data:
                data[at] = draw(st.integers(0, 255))
            case 1:
                del data[at:]
            case 2:
                data[at:at] = draw(st.binary(max_size=12))
            case _:
                data += draw(st.binary(max_size=12))
    return bytes(data)


@given(st.one_of(st.binary(max_size=600), mutated()), clients)
@example(b"\0" * 12, "127.0.0.1")
@example(b"\0\0\0\0\0\1\0\0\0\0\0\0" + b"\1a" * 120 + b"\0\0\1\0\1", "127.0.0.1")
def test_any_bytes_get_an_answer_or_silence(data: bytes, client: str) -> None:
    made = answerer()
    got = raw(made, data, client=client)
    assert made.failures == 0  # no exception was swallowed
    if len(data) < 12 or data[2] & 0x80:
        assert got is None
        return
    assert got is not None
    assert 12 <= len(got) <= UDP_BYTES
    assert got[:2] == data[:2]
    assert got[2] & 0x80
    parsed = dns.message.from_wire(got)
    try:
        query = dns.message.from_wire(data)
    except Exception:
        return
    strange = len(query.question) != 1 or query.answer or query.authority or query.edns > 0
    if query.opcode() == 0 and not strange and not query.additional and not query.tsig:
        assert parsed.rcode() in (0, 1, 3, 5)
        if parsed.rcode() != 1 and query.question[0].rdclass == 1:
            want = expected(query, SNAPSHOT, ALL, table(), client)
            assert parsed.rcode() == want.rcode()


def test_an_error_inside_becomes_servfail_and_is_counted() -> None:
    class Broken:
        def locate(self, ip: object) -> None:
            raise RuntimeError("the database is damaged")

    made = Answerer(Broken())
    made.replace(View.of(SNAPSHOT, ALL))
    assert ask(made=made).rcode() == dns.rcode.SERVFAIL
    assert made.failures == 1
    assert ask(f"no.{ZONE}", made=made).rcode() == dns.rcode.NXDOMAIN


def test_queries_are_counted_by_type_and_rcode() -> None:
    made = answerer()
    slots = [
        made.reply(dns.message.make_query(n, k).to_wire(), packed(CLIENT), stream=False)
        for n, k in ((f"api.{ZONE}", "A"), (f"no.{ZONE}", "TXT"), (ZONE, "TYPE65280"))
    ]
    for reply in slots:
        assert reply is not None
        made.tally.counts[reply.slot] += 1
    assert list(made.tally) == [
        ("A", "NOERROR", 1),
        ("TXT", "NXDOMAIN", 1),
        ("other", "NOERROR", 1),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"contact": "höst@tradewind.test"},
        {"contact": f"host@{'a' * 64}.test"},
        {"contact": "host@a..test"},
        {"refresh_s": -1},
        {"expire_s": 2**32},
        {"names": [{"name": ".".join(["a" * 60] * 4), "edges": ["*"]}]},
    ],
)
def test_zones_that_have_no_dns_form_are_refused_with_a_reason(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidZone, match=r"Zone/tradewind\.test"):
        View.of(snapshot(zone(**changes)), ALL)


def test_wire_names() -> None:
    assert wire.wire_name("Api.Tradewind.Test.") == b"\3api\x09tradewind\4test\0"
    assert wire.mailbox("a.b@c.d") == b"\3a.b\1c\1d\0"
