"""What geo-DNS should answer, written with dnspython and no regard for speed.

`expected` reads the query with dnspython and builds the whole answer as a dnspython message. It
shares the choice of edges with the code under test, and nothing else.
"""

from __future__ import annotations

import ipaddress

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from control_plane.geodns.policy import choose_edges, spread_of
from topology.geo import Locator
from topology.resources import ZoneSpec
from topology.snapshot import Snapshot

UDP_BYTES = 1232
IN = dns.rdataclass.IN


def expected(
    query: dns.message.Message,
    snapshot: Snapshot,
    healthy: frozenset[str],
    locator: Locator,
    client: str,
) -> dns.message.Message:
    """The answer before truncation; a well-formed query of one question is assumed."""
    question = query.question[0]
    answer = dns.message.make_response(query, our_payload=UDP_BYTES)
    answer.flags = dns.flags.QR | (query.flags & (dns.flags.RD | dns.flags.CD))
    subnet = _subnet(query)
    scope = 0
    origin = _zone(question.name, snapshot)
    if question.rdclass != IN or 249 <= question.rdtype <= 254 or origin is None:
        answer.set_rcode(dns.rcode.REFUSED)
    else:
        answer.flags |= dns.flags.AA
        scope = _Zone(snapshot, origin, healthy, locator).fill(answer, client, subnet)
    if query.edns >= 0:
        options = [dns.edns.ECSOption(subnet.address, subnet.srclen, scope)] if subnet else []
        answer.use_edns(0, query.ednsflags & 0x8000, UDP_BYTES, options=options)
    else:
        answer.use_edns(-1)
    return answer


def _subnet(query: dns.message.Message) -> dns.edns.ECSOption | None:
    for option in query.options:
        if isinstance(option, dns.edns.ECSOption):
            return option
    return None


def _zone(name: dns.name.Name, snapshot: Snapshot) -> dns.name.Name | None:
    held = [dns.name.from_text(zone) for zone in snapshot.zones]
    above = [zone for zone in held if name.is_subdomain(zone)]
    return max(above, key=len) if above else None


class _Zone:
    def __init__(
        self,
        snapshot: Snapshot,
        origin: dns.name.Name,
        healthy: frozenset[str],
        locator: Locator,
    ) -> None:
        self._snapshot = snapshot
        self._origin = origin
        self._key = origin.to_text(omit_final_dot=True)
        self._spec: ZoneSpec = snapshot.zones[self._key]
        self._healthy = healthy
        self._locator = locator

    def fill(
        self, answer: dns.message.Message, client: str, subnet: dns.edns.ECSOption | None
    ) -> int:
        """Put the records in; returns the scope."""
        question = answer.question[0]
        kind = question.rdtype
        owner = question.name
        geo = {self._absolute(entry.name): entry.name for entry in self._spec.names}
        own = self._nameserver_addresses()
        existing = {self._origin, *geo, *own}
        if owner not in existing:
            below = [*existing, *(dns.name.from_text(z) for z in self._snapshot.zones)]
            if not any(name.is_subdomain(owner) for name in below):
                answer.set_rcode(dns.rcode.NXDOMAIN)
            self._deny(answer)
            return 0
        if owner in geo and kind in (dns.rdatatype.A, dns.rdatatype.AAAA):
            return self._geo(answer, geo[owner], client, subnet)
        texts: list[str] = []
        if kind == dns.rdatatype.ANY:
            kind, texts = dns.rdatatype.HINFO, ['"RFC8482" ""']
        elif owner == self._origin and kind == dns.rdatatype.SOA:
            texts = [self._soa()]
        elif owner == self._origin and kind == dns.rdatatype.NS:
            texts = [f"{server.name.rstrip('.')}." for server in self._spec.nameservers]
            self._glue(answer)
        elif owner in own:
            texts = [a for a in own[owner] if _kind(a) == kind]
        if texts:
            answer.answer.append(dns.rrset.from_text(owner, self._spec.ttl_s, IN, kind, *texts))
        else:
            self._deny(answer)
        return 0

    def _geo(
        self,
        answer: dns.message.Message,
        entry: str,
        client: str,
        subnet: dns.edns.ECSOption | None,
    ) -> int:
        question = answer.question[0]
        by_subnet = subnet is not None and subnet.srclen > 0
        ip = ipaddress.ip_address(subnet.address if subnet and by_subnet else client)
        place = self._locator.locate(ip)
        choice = choose_edges(self._snapshot, self._key, entry, place, self._healthy, spread_of(ip))
        addresses = [
            address
            for edge in choice.edges
            for address in self._snapshot.edges[edge].addresses
            if _kind(address) == question.rdtype
        ]
        if addresses:
            rrset = dns.rrset.from_text(
                question.name, self._spec.ttl_s, IN, question.rdtype, *addresses
            )
            answer.answer.append(rrset)
        else:
            self._deny(answer)
        if subnet is None or not by_subnet or choice.scope == 0:
            return 0
        if choice.scope is None:
            return int(subnet.srclen)
        mapped = ip.version == 6 and ip.ipv4_mapped is not None
        return choice.scope + (96 if mapped else 0)

    def _deny(self, answer: dns.message.Message) -> None:
        ttl = min(self._spec.ttl_s, self._spec.negative_ttl_s)
        answer.authority.append(dns.rrset.from_text(self._origin, ttl, IN, "SOA", self._soa()))

    def _soa(self) -> str:
        spec = self._spec
        local, _, domain = spec.contact.partition("@")
        mailbox = local.replace(".", r"\.") + "." + domain + "."
        return (
            f"{spec.nameservers[0].name}. {mailbox} {max(1, self._snapshot.revision)} "
            f"{spec.refresh_s} {spec.retry_s} {spec.expire_s} {spec.negative_ttl_s}"
        )

    def _nameserver_addresses(self) -> dict[dns.name.Name, list[str]]:
        held: dict[dns.name.Name, list[str]] = {}
        for server in self._spec.nameservers:
            name = dns.name.from_text(server.name)
            if name.is_subdomain(self._origin):
                held.setdefault(name, []).extend(server.addresses)
        return held

    def _glue(self, answer: dns.message.Message) -> None:
        for name, addresses in self._nameserver_addresses().items():
            for address in addresses:
                rrset = dns.rrset.from_text(name, self._spec.ttl_s, IN, _kind(address), address)
                answer.additional.append(rrset)

    def _absolute(self, name: str) -> dns.name.Name:
        return self._origin if name == "@" else dns.name.from_text(name, self._origin)


def _kind(address: str) -> dns.rdatatype.RdataType:
    return dns.rdatatype.AAAA if ":" in address else dns.rdatatype.A
