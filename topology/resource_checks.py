"""What the types of a resource's fields alone cannot say."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from runtime.validation import Problem, describe
from topology.cursor import TIERS

_HOST_NAME = re.compile(r"^([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_-]{1,63}\.?$", re.I)
_EMAIL = re.compile(r"^[^@\s]+@[^@\s]+$")


def beyond_types(kind: str, spec: object, source: str) -> list[Problem]:
    if not isinstance(spec, dict):
        return []
    problems: list[Problem] = []

    def require(good: bool, path: str, found: object, allowed: str) -> None:
        if not good:
            problems.append(Problem(source, path, describe(found), allowed))

    match kind:
        case "EdgeSite":
            for index, address in enumerate(_list(spec.get("addresses"))):
                require(_is_address(address), f"spec.addresses[{index}]", address, "an IP address")
        case "Region":
            for field in ("cores", "endpoints"):
                for index, address in enumerate(_list(spec.get(field))):
                    path = f"spec.{field}[{index}]"
                    require(_port_fits(address), path, address, "host:port, port 1 to 65535")
            for index, address in enumerate(_list(spec.get("endpoints"))):
                host = address.rpartition(":")[0] if isinstance(address, str) else None
                bare = host.removeprefix("[").removesuffix("]") if host else None
                path = f"spec.endpoints[{index}]"
                require(_is_address(bare), path, address, "<IP address>:port: xDS takes no names")
        case "Link":
            require(
                spec.get("source") != spec.get("target") or not spec.get("source"),
                "spec.target",
                spec.get("target"),
                "a region other than the source",
            )
            address = spec.get("address")
            require(
                address is None or _port_fits(address),
                "spec.address",
                address,
                "host:port, port 1 to 65535",
            )
        case "Policy":
            rollout = spec.get("rollout")
            steps = _list(rollout.get("steps")) if isinstance(rollout, dict) else []
            good = steps == sorted(set(steps), key=_number) and steps[-1:] in ([], [100], [100.0])
            require(good, "spec.rollout.steps", steps, "rising percentages, 100 the last")
            for index, rung in enumerate(_list(spec.get("ladder"))):
                fields = _fields(rung)
                enter, leave = (_number(fields.get(name)) for name in ("enter", "leave"))
                good = 0 < leave <= enter or not enter > 0
                path = f"spec.ladder[{index}].leave"
                require(good, path, leave, f"above 0, at most {enter:g}: else it is never left")
            for index, twice in _repeated(_list(spec.get("ladder"))):
                path = f"spec.ladder[{index}].quality"
                require(False, path, twice, "each step once for each tier")
            for part, low, high in (
                ("overload", "concurrency_min", "concurrency_max"),
                ("outliers", "hold_s", "hold_max_s"),
            ):
                fields = _fields(spec.get(part))
                if low in fields and high in fields:
                    least, most = _number(fields[low]), _number(fields[high])
                    require(most >= least, f"spec.{part}.{high}", most, f"{low} or more")
        case "Zone":
            contact = spec.get("contact")
            if isinstance(contact, str):
                require(bool(_EMAIL.match(contact)), "spec.contact", contact, "an e-mail address")
            for index, server in enumerate(_list(spec.get("nameservers"))):
                if not isinstance(server, dict):
                    continue
                name = server.get("name")
                if isinstance(name, str):
                    path = f"spec.nameservers[{index}].name"
                    require(bool(_HOST_NAME.match(name)), path, name, "a host name")
                for j, address in enumerate(_list(server.get("addresses"))):
                    path = f"spec.nameservers[{index}].addresses[{j}]"
                    require(_is_address(address), path, address, "an IP address")
            for index, entry in enumerate(_list(spec.get("names"))):
                name = entry.get("name") if isinstance(entry, dict) else None
                if isinstance(name, str) and name != "@":
                    path = f"spec.names[{index}].name"
                    require(bool(_HOST_NAME.match(name)), path, name, "a host name or '@'")
    return problems


def _repeated(ladder: list[object]) -> Iterator[tuple[int, object]]:
    """Where a step is there again for a tier that has it."""
    seen: set[tuple[str, str]] = set()
    for index, rung in enumerate(ladder):
        fields = _fields(rung)
        quality, tiers = str(fields.get("quality")), _list(fields.get("tiers", TIERS))
        pairs = {(quality, str(tier)) for tier in tiers}
        if not seen.isdisjoint(pairs):
            yield index, quality
        seen |= pairs


def _fields(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _is_address(value: object) -> bool:
    if not isinstance(value, str):
        return True  # the type check has said so already
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def _port_fits(value: object) -> bool:
    if not isinstance(value, str):
        return True
    port = value.rpartition(":")[2]
    return not port.isdigit() or 1 <= int(port) <= 65535


def _number(value: object) -> float:
    small = isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
    return float(value) if small else 0.0  # type: ignore[arg-type]  # the type check says so
