"""An immutable, checked set of resources at one revision.

Nobody sees a snapshot that is not whole: references are checked when it is built, and every
reader holds one object until it takes the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, cast

import msgspec

from runtime.validation import InvalidDocument, Problem
from topology import resources as res
from topology.errors import UnknownName
from topology.policy import PolicySpec
from topology.resources import (
    ANY,
    EdgeSiteSpec,
    Key,
    LinkSpec,
    ModelSpec,
    OverrideSpec,
    RegionSpec,
    Resource,
    RouteSpec,
    TenantSpec,
    ZoneSpec,
)

DEFAULT_POLICY = PolicySpec()
_NO_ROUTES: Mapping[str, RouteSpec] = MappingProxyType({})


class Snapshot:
    """All resources at `revision`, indexed by kind and name. Build with `Snapshot.build`."""

    __slots__ = ("_by_kind", "_key_owner", "_links", "_routes_of", "_specs", "policy", "revision")

    def __init__(self, revision: int, by_kind: Mapping[str, Mapping[str, Resource]]) -> None:
        self.revision = revision
        self._by_kind = by_kind
        self._specs: dict[str, dict[str, Any]] = {
            kind: {name: resource.spec for name, resource in held.items()}
            for kind, held in by_kind.items()
        }
        self._links = {(spec.source, spec.target): spec for spec in self.links.values()}
        self._routes_of: dict[str, dict[str, RouteSpec]] = {}
        for name, route in self.routes.items():
            for tenant in route.tenants:
                self._routes_of.setdefault(tenant, {})[name] = route
        self.policy: PolicySpec = self._specs["Policy"].get("default", DEFAULT_POLICY)
        self._key_owner = {
            digest: name for name, spec in self.tenants.items() for digest in spec.api_keys
        }

    @classmethod
    def build(cls, revision: int, resources: Iterable[Resource]) -> Snapshot:
        """A checked snapshot, or `InvalidDocument` naming every dangling reference."""
        by_kind: dict[str, dict[str, Resource]] = {kind: {} for kind in res.KINDS}
        for resource in resources:
            by_kind[resource.kind][resource.name] = resource
        problems = reference_problems(by_kind)
        if problems:
            raise InvalidDocument(problems)
        return cls(revision, {k: MappingProxyType(v) for k, v in by_kind.items()})

    @classmethod
    def empty(cls) -> Snapshot:
        return cls.build(0, ())

    def changed(
        self, revision: int, put: Iterable[Resource], removed: Iterable[Key] = ()
    ) -> Snapshot:
        """The snapshot after some resources were put and some removed."""
        held = {resource.key: resource for resource in self}
        for key in removed:
            held.pop(key, None)
        held.update({resource.key: resource for resource in put})
        return Snapshot.build(revision, held.values())

    def __iter__(self) -> Any:
        for kind in self._by_kind.values():
            yield from kind.values()

    def __len__(self) -> int:
        return sum(len(kind) for kind in self._by_kind.values())

    def get(self, key: Key) -> Resource | None:
        return self._by_kind.get(key.kind, {}).get(key.name)

    def of_kind(self, kind: str) -> Mapping[str, Resource]:
        """Resources of a kind by name, or `UnknownName`."""
        if kind not in self._by_kind:
            raise UnknownName(f"no kind {kind!r}", hint="kinds: " + ", ".join(res.KINDS))
        return self._by_kind[kind]

    @property
    def regions(self) -> Mapping[str, RegionSpec]:
        return self._specs["Region"]

    @property
    def edges(self) -> Mapping[str, EdgeSiteSpec]:
        return self._specs["EdgeSite"]

    @property
    def links(self) -> Mapping[str, LinkSpec]:
        return self._specs["Link"]

    @property
    def models(self) -> Mapping[str, ModelSpec]:
        return self._specs["Model"]

    @property
    def routes(self) -> Mapping[str, RouteSpec]:
        return self._specs["Route"]

    def routes_of(self, tenant: str) -> Mapping[str, RouteSpec]:
        """Routes that name this tenant; of `ANY`, those that are for all."""
        return self._routes_of.get(tenant, _NO_ROUTES)

    @property
    def tenants(self) -> Mapping[str, TenantSpec]:
        return self._specs["Tenant"]

    @property
    def zones(self) -> Mapping[str, ZoneSpec]:
        return self._specs["Zone"]

    @property
    def overrides(self) -> Mapping[str, OverrideSpec]:
        return self._specs["Override"]

    def tenant_of_key(self, digest: str) -> str | None:
        """The tenant whose API key hashes to `digest` (`sha256:<hex>`)."""
        return self._key_owner.get(digest)

    def link(self, source: Key, target: Key) -> LinkSpec | None:
        """The link from `source` to `target`, if one is declared."""
        return self._links.get((str(source), str(target)))

    def encode(self) -> bytes:
        """JSON for the last-good file on disk."""
        return msgspec.json.encode(
            {"revision": self.revision, "resources": [res.to_document(r) for r in self]}
        )

    @classmethod
    def decode(cls, data: bytes, source: str) -> Snapshot:
        """The reverse of `encode`, checked as if a stranger had written it."""
        try:
            raw = msgspec.json.decode(data, type=_Stored)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            found = Problem(source, "", str(error), "a snapshot written by Tradewind")
            raise InvalidDocument([found]) from error
        return cls.build(raw.revision, [res.parse(r, source) for r in raw.resources])


class _Stored(msgspec.Struct):
    revision: int
    resources: list[Any]


def reference_problems(by_kind: Mapping[str, Mapping[str, Resource]]) -> list[Problem]:
    """Every name in a spec that names nothing, and every API key with two owners."""
    out: list[Problem] = []

    def known(owner: Resource, path: str, kind: str, name: str) -> None:
        if name != ANY and name not in by_kind[kind]:
            have = ", ".join(sorted(by_kind[kind])) or f"none is defined: apply a {kind} first"
            out.append(
                Problem(str(owner.key), path, f"{kind} {name!r}", f"a known {kind} ({have})")
            )

    for kind, check in _REFERENCES.items():
        for resource in by_kind[kind].values():
            check(resource, resource.spec, known)
    for name, model in by_kind["Model"].items():
        if cast(ModelSpec, model.spec).substitute == name:
            out.append(
                Problem(f"Model/{name}", "spec.substitute", "the model itself", "another model")
            )
    owners: dict[str, str] = {}
    for name, tenant in by_kind["Tenant"].items():
        for index, digest in enumerate(cast(TenantSpec, tenant.spec).api_keys):
            other = owners.setdefault(digest, name)
            if other != name:
                out.append(
                    Problem(
                        f"Tenant/{name}",
                        f"spec.api_keys[{index}]",
                        f"the key of tenant {other!r}",
                        "a key of its own",
                    )
                )
    return out


_Known = Callable[[Resource, str, str, str], None]


def _link(owner: Resource, spec: LinkSpec, known: _Known) -> None:
    for path, reference in (("spec.source", spec.source), ("spec.target", spec.target)):
        key = Key.parse(reference)
        known(owner, path, key.kind, key.name)


def _model(owner: Resource, spec: ModelSpec, known: _Known) -> None:
    for index, name in enumerate(spec.regions):
        known(owner, f"spec.regions[{index}]", "Region", name)
    if spec.substitute is not None:
        known(owner, "spec.substitute", "Model", spec.substitute)


def _route(owner: Resource, spec: RouteSpec, known: _Known) -> None:
    for field, kind in (("models", "Model"), ("tenants", "Tenant"), ("regions", "Region")):
        for index, name in enumerate(getattr(spec, field)):
            known(owner, f"spec.{field}[{index}]", kind, name)


def _tenant(owner: Resource, spec: TenantSpec, known: _Known) -> None:
    for index, name in enumerate(spec.models):
        known(owner, f"spec.models[{index}]", "Model", name)


def _zone(owner: Resource, spec: ZoneSpec, known: _Known) -> None:
    for i, entry in enumerate(spec.names):
        for j, name in enumerate(entry.edges):
            known(owner, f"spec.names[{i}].edges[{j}]", "EdgeSite", name)


def _override(owner: Resource, spec: OverrideSpec, known: _Known) -> None:
    known(owner, "spec.region", "Region", spec.region)


def _policy(owner: Resource, spec: PolicySpec, known: _Known) -> None:
    for index, name in enumerate(spec.rollout.canaries if spec.rollout else ()):
        known(owner, f"spec.rollout.canaries[{index}]", "EdgeSite", name)


_REFERENCES: dict[str, Callable[[Resource, Any, _Known], None]] = {
    "Link": _link,
    "Model": _model,
    "Route": _route,
    "Tenant": _tenant,
    "Zone": _zone,
    "Override": _override,
    "Policy": _policy,
}
