"""Where things lie in the store. Everything else in the control plane asks here.

/tradewind/v1/<kind>/<name>        a resource, as JSON
/tradewind/v1/.head                the last change: its number and id; every change guards it
/tradewind/v1/.rollout             the staged rollout of the last change, while there is one
/tradewind/v1-history/<number>     what that change did, before and after
/tradewind/v1-audit/<number>       who did it, when, why, and what was forced; chained by hash
/tradewind/v1-director/leader      who directs, under its lease: every write of a director guards it
/tradewind/v1-director/state       what the director decided: shares, drains, verdicts, quotas
/tradewind/v1-director/outlook     the load as the director last saw it, for forecasts
/tradewind/v1-replicas/<name>      a living control-plane replica and its address, under its lease
/tradewind/v1-members/<node id>    a living edge or core and what it said of itself, under its lease
"""

from __future__ import annotations

from topology.resources import Key

RESOURCES = "/tradewind/v1/"
HEAD = f"{RESOURCES}.head"
ROLLOUT = f"{RESOURCES}.rollout"
HISTORY = "/tradewind/v1-history/"
AUDIT = "/tradewind/v1-audit/"
DIRECTOR = "/tradewind/v1-director/"
LEADER = f"{DIRECTOR}leader"
DIRECTOR_STATE = f"{DIRECTOR}state"
OUTLOOK = f"{DIRECTOR}outlook"
REPLICAS = "/tradewind/v1-replicas/"
MEMBERS = "/tradewind/v1-members/"

# Keys under RESOURCES that are no resources.
RESERVED = frozenset({HEAD, ROLLOUT})


def of_resource(key: Key) -> str:
    return f"{RESOURCES}{key.kind}/{key.name}"


def resource_at(path: str) -> Key:
    """The reverse of `of_resource`; a path of any other form gives a kind that does not exist."""
    return Key.parse(path.removeprefix(RESOURCES))


def of_history(number: int) -> str:
    return f"{HISTORY}{number:012d}"


def of_audit(number: int) -> str:
    return f"{AUDIT}{number:012d}"


def number_of(path: str) -> int | None:
    """The number of the change whose history or audit entry lies there; None: neither does."""
    number = path.removeprefix(HISTORY).removeprefix(AUDIT)
    return int(number) if len(number) == 12 and number.isascii() and number.isdigit() else None


def of_replica(name: str) -> str:
    return f"{REPLICAS}{name}"


def of_member(node_id: str) -> str:
    return f"{MEMBERS}{node_id}"
