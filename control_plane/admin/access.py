"""Who may call what: the one table of roles and calls. Pure.

A `viewer` reads, and sees what a change would do. An `operator` also makes changes, except that
tenants and policy are not an operator's to change and that safety rules are not an operator's to
overrule. An `admin` may do everything. Processes (edges, cores, proxies, replicas, name servers)
may call nothing here.

An rpc that the table does not name may be called by nobody; a test compares it with the service.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from control_plane.admin.errors import Denied
from control_plane.changes.plan import Plan
from runtime.identity import Principal

VIEWER, OPERATOR, ADMIN = "viewer", "operator", "admin"
ROLES = (VIEWER, OPERATOR, ADMIN)  # each may do what those before it may
ADMIN_KINDS = frozenset({"Tenant", "Policy"})  # changed by an admin alone


class Rule(Struct, frozen=True):
    """The least role for a call, and for the same call as a dry run, which changes nothing."""

    least: str
    dry_run: str = ""


RULES: dict[str, Rule] = {
    "Apply": Rule(OPERATOR, dry_run=VIEWER),
    "Get": Rule(VIEWER),
    "Status": Rule(VIEWER),
    "Explain": Rule(VIEWER),
    "Paths": Rule(VIEWER),
    "Ladder": Rule(VIEWER),
    "SetOverride": Rule(OPERATOR, dry_run=VIEWER),
    "ClearOverride": Rule(OPERATOR, dry_run=VIEWER),
    "History": Rule(VIEWER),
    "Rollback": Rule(OPERATOR, dry_run=VIEWER),
    "VerifyAudit": Rule(VIEWER),
    "GetRollout": Rule(VIEWER),
    "ControlRollout": Rule(OPERATOR),
}


def check_call(principal: Principal, method: str, request: Any) -> None:
    """Raise `Denied` unless `principal` may make this call. `request` is its message."""
    rule = RULES.get(method)
    if rule is None:
        raise Denied(f"nobody may call {method}: no rule says who may")
    dry_run = bool(rule.dry_run) and bool(request.dry_run)
    least = rule.dry_run if dry_run else rule.least
    if not _at_least(principal.role, least):
        raise Denied(
            f"{principal} may not call {method}{_but(rule, dry_run, principal.role)}",
            hint=_hint(least),
        )
    forced = tuple(getattr(request, "force", ()))
    if forced and not dry_run and not _at_least(principal.role, ADMIN):
        rules = " ".join(f"--force-{rule}" for rule in forced)
        raise Denied(
            f"{principal} may not overrule safety rules ({rules})",
            hint=f"without that the change may be refused; {_hint(ADMIN)}",
        )


def check_change(principal: Principal, plan: Plan) -> None:
    """Raise `Denied` where a plan, about to be carried out, touches what `principal` may not."""
    if _at_least(principal.role, ADMIN):
        return
    touched = [str(c.key) for c in plan.effective if c.key.kind in ADMIN_KINDS]
    if touched:
        more = f" and {len(touched) - 5} more" if len(touched) > 5 else ""
        raise Denied(
            f"{principal} may not change {', '.join(touched[:5])}{more}: "
            f"a {' or '.join(sorted(ADMIN_KINDS, reverse=True))} is an admin's to change",
            hint=f"leave it out of the change, or ask an admin; {_hint(ADMIN)}",
        )


def _at_least(role: str, least: str) -> bool:
    return role in ROLES and ROLES.index(role) >= ROLES.index(least)


def _but(rule: Rule, dry_run: bool, role: str) -> str:
    would = bool(rule.dry_run) and not dry_run and _at_least(role, rule.dry_run)
    return "; it may with --dry-run" if would else ""


def _hint(least: str) -> str:
    able = ROLES[ROLES.index(least) :]
    named = " or ".join(able)
    return f"the role {named} may: `tradewind pki issue {least}/<name>` makes such an identity"
