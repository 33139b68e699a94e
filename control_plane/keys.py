"""Where things lie in the store. Everything else in the control plane asks here.

/tradewind/v1/<kind>/<name>        a resource, as JSON
/tradewind/v1/.head                the last change: its number and id; every change guards it
/tradewind/v1-history/<number>     what that change did, before and after
/tradewind/v1-audit/<number>       who did it, when, why, and what was forced
"""

from __future__ import annotations

from topology.resources import Key

RESOURCES = "/tradewind/v1/"
HEAD = f"{RESOURCES}.head"
HISTORY = "/tradewind/v1-history/"
AUDIT = "/tradewind/v1-audit/"


def of_resource(key: Key) -> str:
    return f"{RESOURCES}{key.kind}/{key.name}"


def resource_at(path: str) -> Key:
    """The reverse of `of_resource`; a path of any other form gives a kind that does not exist."""
    return Key.parse(path.removeprefix(RESOURCES))


def of_history(number: int) -> str:
    return f"{HISTORY}{number:012d}"


def of_audit(number: int) -> str:
    return f"{AUDIT}{number:012d}"
