"""Geo-DNS as BIND's `dig` sees it: real datagrams, real streams."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from control_plane.geodns.answers import Answerer
from control_plane.geodns.lookup import View
from control_plane.geodns.server import DnsServer
from tests.geodns.worlds import ALL, ZONE, edge, snapshot, table

DIG = shutil.which("dig")
pytestmark = pytest.mark.skipif(
    DIG is None, reason="dig is not installed (Debian: apt-get install bind9-dnsutils)"
)
API = f"api.{ZONE}"


class Dug(NamedTuple):
    """What dig printed, and the parts of it that tests ask for."""

    text: str
    status: str
    flags: set[str]
    answers: list[str]


@pytest.fixture
async def port() -> AsyncIterator[int]:
    answerer = Answerer(table())
    crowd = [f"192.0.2.{i}" for i in range(100)]
    answerer.replace(View.of(snapshot(edge("london", crowd)), ALL))
    server = DnsServer(answerer, ["127.0.0.1:0"])
    await server.start()
    yield server.addresses[0][1]
    await server.close()


async def dig(port: int, *words: str) -> Dug:
    assert DIG is not None
    process = await asyncio.create_subprocess_exec(
        DIG,
        "-r",  # no ~/.digrc
        "@127.0.0.1",
        "-p",
        str(port),
        "+time=2",
        "+tries=1",
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    text = out.decode()
    assert process.returncode == 0, text
    assert "Warning: Message parser reports malformed" not in text
    assert "unexpected source" not in text
    status = re.search(r"status: (\w+)", text)
    flags = re.search(r"flags: ([a-z ]*);", text)
    section = re.search(r";; ANSWER SECTION:\n(.*?)\n\n", text, re.S)
    return Dug(
        text,
        status[1] if status else "",
        set(flags[1].split()) if flags else set(),
        [line.split(None, 4)[4] for line in section[1].splitlines()] if section else [],
    )


async def test_an_answer_by_client_subnet_with_its_scope(port: int) -> None:
    dug = await dig(port, API, "A", "+subnet=198.18.1.0/24")
    assert (dug.status, dug.answers) == ("NOERROR", ["192.0.2.1", "192.0.2.2"])
    assert {"qr", "aa", "rd"} <= dug.flags
    assert "; CLIENT-SUBNET: 198.18.1.0/24/24" in dug.text
    wide = await dig(port, API, "A", "+subnet=203.0.0.0/16")
    assert "; CLIENT-SUBNET: 203.0.0.0/16/18" in wide.text
    v6 = await dig(port, API, "A", "+subnet=2001:db8:1ff::/48")
    assert "; CLIENT-SUBNET: 2001:db8:1ff::/48/40" in v6.text


async def test_a_client_that_wants_no_subnet_used(port: int) -> None:
    dug = await dig(port, API, "A", "+subnet=0")
    assert dug.status == "NOERROR"
    assert dug.answers == ["192.0.2.3", "192.0.2.2"]  # Riyadh: the asker, 127.0.0.1


@pytest.mark.parametrize(
    ("words", "status", "answers"),
    [
        ((ZONE, "SOA"), "NOERROR",
         [r"ns1.tradewind.test. host\.master.tradewind.test. 7 3600 600 604800 15"]),
        ((ZONE, "NS"), "NOERROR", ["ns1.tradewind.test.", "ns2.dns.example."]),
        ((f"ns1.{ZONE}", "AAAA"), "NOERROR", ["2001:db8::53"]),
        ((f"er.{ZONE}", "A"), "NOERROR", []),
        ((f"no.{ZONE}", "A"), "NXDOMAIN", []),
        ((API, "ANY", "+notcp"), "NOERROR", ['"RFC8482" ""']),
        (("example.com", "A"), "REFUSED", []),
        (("version.bind", "CH", "TXT"), "REFUSED", []),
        ((API, "A", "+norec", "+noedns"), "NOERROR", ["192.0.2.3", "192.0.2.2"]),
        ((API, "A", "+opcode=notify"), "NOTIMP", []),
        ((API, "A", "+edns=1", "+noednsnegotiation"), "BADVERS", []),
        ((API, "A", "+ednsopt=8:0001"), "FORMERR", []),
        ((API, "A", "+cookie", "+nsid", "+dnssec", "+padding=128"), "NOERROR",
         ["192.0.2.3", "192.0.2.2"]),
    ],
)  # fmt: skip
async def test_what_dig_is_told(
    port: int, words: tuple[str, ...], status: str, answers: list[str]
) -> None:
    dug = await dig(port, *words)
    assert (dug.status, dug.answers) == (status, answers)


async def test_dig_agrees_on_an_edns_version_by_itself(port: int) -> None:
    dug = await dig(port, API, "A", "+edns=1")
    assert (dug.status, len(dug.answers)) == ("NOERROR", 2)


async def test_glue_is_shown_with_the_name_servers(port: int) -> None:
    dug = await dig(port, ZONE, "NS")
    assert re.search(r"ADDITIONAL SECTION:\nns1\.tradewind\.test\.\s+30\s+IN\s+A\s", dug.text)


async def test_the_negative_ttl(port: int) -> None:
    dug = await dig(port, f"no.{ZONE}", "A")
    assert re.search(r"AUTHORITY SECTION:\ntradewind\.test\.\s+15\s+IN\s+SOA\s", dug.text)


async def test_a_truncated_answer_is_asked_for_again_over_tcp(port: int) -> None:
    dug = await dig(port, f"one.{ZONE}", "A")
    assert "Truncated, retrying in TCP mode" in dug.text
    assert len(dug.answers) == 100
    cut = await dig(port, f"one.{ZONE}", "A", "+ignore")
    assert "tc" in cut.flags
    assert cut.answers == []


async def test_several_queries_on_one_connection(port: int) -> None:
    dug = await dig(port, "+tcp", "+keepopen", API, "A", f"one.{ZONE}", "A", ZONE, "SOA")
    assert len(re.findall("status: NOERROR", dug.text)) == 3


async def test_the_case_of_the_question_is_kept(port: int) -> None:
    dug = await dig(port, "aPi.TrAdEwInD.tEsT", "A")
    assert dug.text.count("aPi.TrAdEwInD.tEsT.") >= 3
