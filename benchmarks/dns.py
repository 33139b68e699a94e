"""Geo-DNS: ours beside gdnsd, Knot DNS with mod-geoip and PowerDNS with the geoip backend.

    python -m benchmarks.dns [--json FILE] [--runs N] [--seconds S]      (make bench NAME=dns)

All four serve one zone from one mapping: 512 client subnets, each nearest to one of twelve
cities, each city answered with its two nearest edges. Before anything is measured, all must
give the same addresses for a sample of subnets. Then dnsperf asks them in turn, each server
with one core and dnsperf with another, over UDP on loopback.

Scenarios:
  subnets      A with EDNS client subnet, 512 subnets in random order: what resolvers send
  one subnet   the same question over and over
  no subnet    no EDNS: the answer depends on the resolver's address
  never twice  random-case names and random cookies beside the subnet: no packet comes again
  no such name  a random name each time (a "water torture" attack): no cache can help
"""

from __future__ import annotations

import ipaddress
import random
import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import dns.edns
import dns.exception
import dns.message
import dns.query
import yaml

from benchmarks import harness
from benchmarks.harness import BENCH, OURS, Process, Report, Sample, Unavailable, say
from control_plane.geodns.policy import choose_edges
from tests.geodns.worlds import ADDRESSES, ALL, ZONE, snapshot, write_mmdb
from topology.geo import Place
from topology.wire import last_good

NAME = f"api.{ZONE}"
HOST = "127.0.0.1"
FOLDER = BENCH / "dns"
PACKAGES = {
    "gdnsd": ("gdnsd",),
    "knot": ("knot", "knot-module-geoip"),
    "powerdns": ("pdns-server", "pdns-backend-geoip"),
}
OUTSTANDING = "200"  # queries in flight: enough to keep any of them busy
CLIENTS = "8"
TIMEOUT_S = "1"
QUERIES = 20_000  # in the input of a scenario

CITIES: dict[str, tuple[float, float]] = {
    "tokyo": (35.68, 139.69),
    "mumbai": (19.08, 72.88),
    "riyadh": (24.71, 46.68),
    "london": (51.51, -0.13),
    "sao-paulo": (-23.55, -46.63),
    "sydney": (-33.87, 151.21),
    "virginia": (39.04, -77.49),
    "bahrain": (26.07, 50.56),
    "hong-kong": (22.32, 114.17),
    "seoul": (37.57, 126.98),
    "tel-aviv": (32.07, 34.78),
    "berlin": (52.52, 13.40),
}
LOOPBACK_CITY = "riyadh"


def subnets() -> dict[str, str]:
    """Client subnet -> city: all 512 of 198.18.0.0/15 (RFC 2544), and dnsperf's own address."""
    names = list(CITIES)
    nets = ipaddress.ip_network("198.18.0.0/15").subnets(new_prefix=24)
    placed = {str(net): names[index % len(names)] for index, net in enumerate(nets)}
    return placed | {"127.0.0.0/8": LOOPBACK_CITY}


def answers() -> dict[str, list[str]]:
    """City -> the IPv4 addresses that every server must answer with."""
    held = snapshot()
    found = {}
    for city, at in CITIES.items():
        choice = choose_edges(held, ZONE, "api", Place(city, *at, 24), ALL)
        found[city] = [ADDRESSES[edge][0] for edge in choice.edges]
    return found


# --- The servers -----------------------------------------------------------------------------

OURS_PROGRAM = """
import sys
from pathlib import Path
from control_plane.geodns.service import run
from control_plane.geodns.settings import DnsSettings
from runtime import settings
run(settings.load(DnsSettings, Path(sys.argv[1]), {}))
"""


def start_ours(port: int, cpus: list[int]) -> Process:
    last_good.save(FOLDER / "last_good", snapshot())
    settings = FOLDER / "ours.yaml"
    document = {
        "listen": [f"{HOST}:{port}"],
        "last_good": str(FOLDER / "last_good"),
        "mmdb": str(FOLDER / "city.mmdb"),
        "metrics": None,
        "health": {"enabled": False},
    }
    settings.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-c", OURS_PROGRAM, str(settings)]
    return Process("dns-ours", command, cpus=cpus)


ZONE_FILE = f"""$ORIGIN {ZONE}.
$TTL 30
@ SOA ns1 host\\.master 7 3600 600 604800 15
@ NS ns1
ns1 A 192.0.2.53
"""


def start_gdnsd(port: int, cpus: list[int]) -> Process:
    folder = _folder("gdnsd")
    (folder / "zones").mkdir(exist_ok=True)
    (folder / "zones" / ZONE).write_text(ZONE_FILE + "api DYNA geoip!api\n")
    nets = "\n".join(f"        {net} => [{city}]" for net, city in subnets().items())
    cities = "\n".join(
        f"        {city} => [{', '.join(addresses)}]" for city, addresses in answers().items()
    )
    (folder / "config").write_text(
        f"""options => {{
  listen = {HOST}:{port}
  udp_threads = 1
  tcp_threads = 1
  run_dir = {folder}/run
  state_dir = {folder}/state
}}
plugins => {{ geoip => {{
  maps => {{ clients => {{
      datacenters => [{", ".join(CITIES)}]
      nets => {{
{nets}
      }}
  }} }}
  resources => {{ api => {{
      map => clients
      service_types => up
      dcmap => {{
{cities}
      }}
  }} }}
}} }}
"""
    )
    return Process("dns-gdnsd", ["gdnsd", "-c", str(folder), "start"], cpus=cpus)


def start_knot(port: int, cpus: list[int]) -> Process:
    folder = _folder("knot")
    (folder / f"{ZONE}.zone").write_text(ZONE_FILE + "api A 192.0.2.99\n")
    wanted = answers()
    rows = "".join(
        f"  - net: {net}\n    A: [{', '.join(wanted[city])}]\n" for net, city in subnets().items()
    )
    (folder / "geo.conf").write_text(f"{NAME}:\n{rows}")
    (folder / "knot.conf").write_text(
        f"""server:
  rundir: {folder}/run
  listen: {HOST}@{port}
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
  edns-client-subnet: on
log:
  - target: stderr
    any: warning
database:
  storage: {folder}/state
mod-geoip:
  - id: clients
    config-file: {folder}/geo.conf
    ttl: 30
    mode: subnet
zone:
  - domain: {ZONE}
    storage: {folder}
    file: {ZONE}.zone
    module: mod-geoip/clients
"""
    )
    return Process("dns-knot", ["knotd", "-c", str(folder / "knot.conf")], cpus=cpus)


def start_powerdns(port: int, cpus: list[int]) -> Process:
    folder = _folder("powerdns")
    records: dict[str, object] = {
        ZONE: [
            {"soa": f"ns1.{ZONE} host.{ZONE} 7 3600 600 604800 15"},
            {"ns": {"content": f"ns1.{ZONE}", "ttl": 30}},
        ]
    }
    for city, addresses in answers().items():
        records[f"{city}.geo.{ZONE}"] = [{"a": address} for address in addresses]
    zones = {
        "domains": [
            {
                "domain": ZONE,
                "ttl": 30,
                "records": records,
                "services": {NAME: f"%ci.geo.{ZONE}"},
            }
        ]
    }
    (folder / "zones.yaml").write_text(yaml.safe_dump(zones))
    (folder / "pdns.conf").write_text(
        f"""launch=geoip
geoip-database-files=mmdb:{FOLDER}/city.mmdb
geoip-zones-file={folder}/zones.yaml
edns-subnet-processing=yes
local-address={HOST}
local-port={port}
socket-dir={folder}/run
receiver-threads=1
distributor-threads=1
retrieval-threads=1
signing-threads=1
daemon=no
guardian=no
security-poll-suffix=
loglevel=3
"""
    )
    return Process("dns-powerdns", ["pdns_server", f"--config-dir={folder}"], cpus=cpus)


def _folder(name: str) -> Path:
    folder = FOLDER / name
    for path in (folder, folder / "run", folder / "state"):
        path.mkdir(parents=True, exist_ok=True)
    return folder


STARTERS: dict[str, Callable[[int, list[int]], Process]] = {
    OURS: start_ours,
    "gdnsd": start_gdnsd,
    "knot": start_knot,
    "powerdns": start_powerdns,
}


# --- The same answers --------------------------------------------------------------------------


def ask(port: int, subnet: str | None) -> set[str]:
    """The addresses that a server answers with."""
    options = [] if subnet is None else [dns.edns.ECSOption.from_text(subnet)]
    query = dns.message.make_query(NAME, "A", options=options, use_edns=0 if options else -1)
    answer = dns.query.udp(query, HOST, timeout=2, port=port)
    return {item.to_text() for rrset in answer.answer for item in rrset}


def answers_at_all(port: int) -> bool:
    try:
        return bool(ask(port, "198.18.1.0/24"))
    except (dns.exception.DNSException, OSError):
        return False


def check_the_same(name: str, port: int) -> None:
    """Raises `Unavailable` where a server's answers are not the expected ones."""
    wanted = answers()
    placed = subnets()
    sample = random.Random(1).sample([s for s in placed if s.startswith("198.")], 40)
    for subnet in (*sample, None):
        city = LOOPBACK_CITY if subnet is None else placed[subnet]
        got = ask(port, subnet)
        if got != set(wanted[city]):
            raise Unavailable(f"{name} answers {got} for {subnet}, not {wanted[city]}")


# --- The load ----------------------------------------------------------------------------------


def write_inputs() -> dict[str, Path]:
    """dnsperf's input of each scenario, as a stream of length-framed messages."""
    rng = random.Random(42)
    nets = [net for net in subnets() if net.startswith("198.")]
    cookie = partial(rng.randbytes, 8)

    def with_subnet(net: str) -> dns.message.Message:
        return dns.message.make_query(NAME, "A", options=[dns.edns.ECSOption.from_text(net)])

    def never_twice() -> dns.message.Message:
        name = "".join(c.upper() if rng.random() < 0.5 else c for c in NAME)
        options = [
            dns.edns.ECSOption.from_text(rng.choice(nets)),
            dns.edns.GenericOption(dns.edns.OptionType.COOKIE, cookie()),
        ]
        return dns.message.make_query(name, "A", options=options)

    def missing() -> dns.message.Message:
        return dns.message.make_query(f"{rng.randbytes(6).hex()}.{ZONE}", "A", use_edns=0)

    return {
        "subnets": _write("subnets", (with_subnet(rng.choice(nets)) for _ in range(QUERIES))),
        "one subnet": _write("one", [with_subnet("198.18.1.0/24")]),
        "no subnet": _write("plain", [dns.message.make_query(NAME, "A", use_edns=-1)]),
        "never twice": _write("never-twice", (never_twice() for _ in range(QUERIES))),
        "no such name": _write("missing", (missing() for _ in range(QUERIES))),
    }


def _write(name: str, queries: Iterable[dns.message.Message]) -> Path:
    path = FOLDER / f"{name}.queries"
    path.write_bytes(b"".join(query.to_wire(prepend_length=True) for query in queries))
    return path


def load(
    server: Process,
    port: int,
    queries: Path,
    seconds: float,
    cpus: list[int],
    expected_rcode: str = "NOERROR",
) -> Sample:
    """One dnsperf run: queries answered per second, with what both sides took."""
    length = str(max(1, round(seconds)))
    command = ["dnsperf", "-s", HOST, "-p", str(port), "-d", str(queries), "-B", "-T", "1"]
    command += ["-l", length, "-c", CLIENTS, "-q", OUTSTANDING, "-t", TIMEOUT_S]
    before = server.cpu_s()
    ran = harness.run_generator(command, cpus=cpus, timeout_s=seconds + 30)
    server_s = server.cpu_s() - before
    # dnsperf waits for lost queries behind its run time, and nobody is busy meanwhile.
    time_s = re.search(r"Run time \(s\):\s+([\d.]+)", ran.out)
    rate = re.search(r"Queries per second:\s+([\d.]+)", ran.out)
    lost = re.search(r"Queries lost:\s+(\d+)", ran.out)
    codes = re.search(r"Response codes:\s+(.*)", ran.out)
    latency = re.search(r"Average Latency \(s\):\s+([\d.]+)", ran.out)
    if rate is None or time_s is None or codes is None or not codes[1].startswith(expected_rcode):
        raise Unavailable(f"dnsperf against {server.name}:\n{ran.out}")
    return Sample(
        float(rate[1]),
        server_cores=server_s / float(time_s[1]),
        generator_cores=ran.cores * ran.wall_s / float(time_s[1]),
        notes={
            "lost": float(lost[1]) if lost else 0.0,
            "latency_ms": 1e3 * float(latency[1]) if latency else 0.0,
        },
    )


def main() -> None:
    parser = harness.arguments(__doc__.splitlines()[0], runs=5, seconds=4)
    parser.add_argument("--scenario", action="append", help="only this one; may be repeated")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    placed = {net: (city, *CITIES[city]) for net, city in subnets().items()}
    (FOLDER / "city.mmdb").write_bytes(write_mmdb(placed))
    harness.ensure_debian(["dnsperf"])
    report = Report("dns", "queries/s")
    server_cpus, generator_cpus = harness.cores_for()
    running: dict[str, tuple[Process, int]] = {}
    try:
        for name, start in STARTERS.items():
            try:
                harness.ensure_debian(PACKAGES.get(name, ()))
                port = harness.free_port()
                process = start(port, server_cpus)
                running[name] = (process, port)
                process.wait_until(lambda port=port: answers_at_all(port))  # type: ignore[misc]
                check_the_same(name, port)
            except Unavailable as error:
                if name == OURS:
                    raise
                report.note(f"{name} is left out: {error}")
                if name in running:
                    running.pop(name)[0].stop()
        say(f"the same answers from {', '.join(running)}; servers on CPU {server_cpus}, "
            f"dnsperf on CPU {generator_cpus}")  # fmt: skip
        for scenario, queries in write_inputs().items():
            if arguments.scenario and scenario not in arguments.scenario:
                continue
            say(f"{scenario}:")
            rcode = "NXDOMAIN" if scenario == "no such name" else "NOERROR"
            how = (queries, arguments.seconds, generator_cpus, rcode)
            sides = {
                name: partial(load, process, port, *how)
                for name, (process, port) in running.items()
            }
            report.add(scenario, harness.take_turns(sides, arguments.runs))
    finally:
        for process, _ in running.values():
            process.stop()
    report.finish(arguments.json)


if __name__ == "__main__":
    main()
