"""Answers against dnspython as the oracle, caches against none, and anything at all."""

from __future__ import annotations

import random
from typing import Any

import dns.edns
import dns.flags
import dns.message
from hypothesis import example, given
from hypothesis import strategies as st

from tests.geodns.asking import SNAPSHOT, Cached, answerer, ecs, raw
from tests.geodns.oracle import UDP_BYTES, expected
from tests.geodns.worlds import ALL, ZONE, table

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
    cached = Cached(made)
    assert [cached.ask(data, client), cached.ask(data, client)] == [got, got]
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
