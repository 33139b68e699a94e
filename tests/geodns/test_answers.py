"""Answers to packets: a table of cases, dnspython as the oracle, and anything at all."""

from __future__ import annotations

import struct
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import pytest

from control_plane.geodns import packet as wire
from control_plane.geodns.answers import Answerer
from control_plane.geodns.errors import InvalidZone
from control_plane.geodns.lookup import View
from tests.geodns.asking import CLIENT, SNAPSHOT, Cached, answerer, ask, ecs, packed, raw
from tests.geodns.oracle import UDP_BYTES
from tests.geodns.worlds import ALL, ZONE, edge, snapshot, table, zone
from topology.snapshot import Snapshot


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


def test_only_what_repeats_is_kept() -> None:
    made = answerer()
    cached = Cached(made)
    for kind in ("TYPE252", "A"):  # refused, and no such name
        cached.ask(dns.message.make_query(f"no.{ZONE}", kind).to_wire(), CLIENT)
        assert len(made.hot) == 0
    cached.ask(dns.message.make_query(f"api.{ZONE}", "A", use_edns=0).to_wire(), CLIENT)
    assert len(made.hot) == 2  # that it depends on the origin, and the answer for this one
    cached.ask(dns.message.make_query(f"api.{ZONE}", "A", use_edns=0).to_wire(), "198.18.1.1")
    assert len(made.hot) == 3
    misses = made.misses
    cookie = dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"12345678")
    padding = dns.edns.GenericOption(dns.edns.OptionType.PADDING, bytes(100))
    for again in (
        dns.message.make_query(
            f"api.{ZONE}", "A", use_edns=0
        ),  # from another client of the same place
        dns.message.make_query(f"aPi.{ZONE}", "A", use_edns=0),  # in another case
        dns.message.make_query(f"api.{ZONE}", "A", options=[cookie]),
        dns.message.make_query(f"API.{ZONE}", "A", options=[cookie, padding, cookie]),
    ):
        assert cached.ask(again.to_wire(), "198.18.1.200") == raw(
            made, again.to_wire(), client="198.18.1.200"
        )
    assert (made.misses, len(made.hot)) == (misses, 3)


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
