"""Consul's HTTP API by py-consul's asyncio client, and what its failures mean.

py-consul 1.8 builds its aiohttp connector with options that aiohttp 3.14 deprecates, and lets the
environment's CONSUL_HTTP_TOKEN win over the settings; both are put right here. Needs the extra
`consul` (aiohttp).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import aiohttp
import consul.aio
import consul.base
from consul.exceptions import ACLPermissionDenied, ConsulException

from control_plane.membership.errors import CannotOpenRegistry, RegistryUnavailable
from control_plane.membership.settings import ConsulSettings

T = TypeVar("T")

CHECKS = {"passing": "ttl_pass", "warning": "ttl_warn", "critical": "ttl_fail"}
_UNKNOWN_CHECK = "does not have associated TTL"  # agent/agent.go, of 1.8; later ones answer 404
# Consul adds up to a sixteenth of the wait, so that clients do not come back in step.
_WAIT_SLACK = 1 / 16


class ConsulClient:
    """One agent. Every call may raise `RegistryUnavailable`. Build it in a running event loop.

    Raises `CannotOpenRegistry` where a file that the settings name cannot be used.
    """

    def __init__(self, settings: ConsulSettings) -> None:
        self._settings = settings
        self._token = self._read_token()
        host, _, port = settings.address.rpartition(":")
        if not 0 < int(port) <= 65535:
            raise CannotOpenRegistry(f"membership.consul.address: {settings.address} has no port")
        self._http = _Http(host.strip("[]"), int(port), settings.scheme, _tls(settings))
        self._api = _Api(self._http, settings.datacenter)
        self._api.token = self._token

    async def close(self) -> None:
        await self._http.close()

    async def instances(self, service: str, index: int, wait_s: float) -> tuple[int, list[Any]]:
        """All instances of a service with their checks, and the index to ask with next. With an
        index above 0 it waits until there is something newer, or for about `wait_s`."""
        health = self._api.health
        wait = f"{max(1, round(wait_s))}s"
        longest_s = wait_s * (1 + _WAIT_SLACK) + self._settings.call_timeout_s
        told, found = await self._call(
            lambda token: health.service(service, index=index or None, wait=wait, token=token),
            longest_s if index else self._settings.call_timeout_s,
        )
        try:
            return int(told), list(found or ())
        except (TypeError, ValueError) as error:
            raise RegistryUnavailable(f"Consul's index is {told!r}") from error

    async def register(
        self,
        service: str,
        service_id: str,
        check: Mapping[str, Any],
        address: str = "",
        meta: Mapping[str, str] | None = None,
    ) -> None:
        """Make a service, or what changed of it, known to the agent."""
        host, _, port = address.rpartition(":")
        agent = self._api.agent
        numbered = port.isdecimal() and 0 < int(port[:6]) <= 65535
        await self._call(
            lambda token: agent.service.register(
                service,
                service_id=service_id,
                address=host.strip("[]") if numbered else None,
                port=int(port) if numbered else None,
                check=dict(check),
                meta=dict(meta or {}),
                replace_existing_checks=True,
                token=token,
            )
        )

    async def update(self, service_id: str, status: str, note: str) -> bool:
        """Set the TTL check of a service; False where the agent does not know it."""
        set_check = getattr(self._api.agent.check, CHECKS[status])
        try:
            known = await self._call(
                lambda token: set_check(f"service:{service_id}", notes=note, token=token)
            )
        except RegistryUnavailable as error:
            if _UNKNOWN_CHECK in str(error):
                return False
            raise
        return bool(known)

    async def knows(self, service_id: str) -> bool:
        """Whether the agent has a service of this id."""
        http = self._api.http
        found = await self._call(
            lambda token: http.get(
                lambda response: response.code,
                f"/v1/agent/service/{service_id}",
                headers=self._api.prepare_headers(token),
            )
        )
        if found in (200, 404):
            return bool(found == 200)
        raise RegistryUnavailable(f"Consul answers {found} when asked for {service_id}")

    async def deregister(self, service_id: str) -> None:
        """Take a service out of the agent; one that it does not know is no error."""
        agent = self._api.agent
        await self._call(lambda token: agent.service.deregister(service_id, token=token))

    async def _call(
        self, begin: Callable[[str | None], Awaitable[T]], timeout_s: float | None = None
    ) -> T:
        used = self._token
        try:
            try:
                return await self._once(begin, timeout_s)
            except ACLPermissionDenied:
                self._token = self._api.token = self._read_token()
                if self._token == used:
                    raise
                return await self._once(begin, timeout_s)
        except CannotOpenRegistry as error:  # the token's file is gone
            raise RegistryUnavailable(str(error)) from error
        except TimeoutError as error:
            raise RegistryUnavailable(f"Consul at {self._where} did not answer in time") from error
        except aiohttp.ClientError as error:
            raise RegistryUnavailable(f"Consul at {self._where}: {error}") from error
        except ConsulException as error:
            text = str(error).strip()[:300] or type(error).__name__
            raise RegistryUnavailable(f"Consul at {self._where} refuses: {text}") from error

    async def _once(
        self, begin: Callable[[str | None], Awaitable[T]], timeout_s: float | None
    ) -> T:
        async with asyncio.timeout(timeout_s or self._settings.call_timeout_s):
            return await begin(self._token)

    @property
    def _where(self) -> str:
        return self._settings.address

    def _read_token(self) -> str | None:
        path = self._settings.token_file
        if path is None:
            return None
        try:
            token = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CannotOpenRegistry(
                f"cannot read Consul's token from {path}: {error}",
                hint="`membership.consul.token_file` names it",
            ) from error
        if not token or not token.isprintable() or " " in token:
            raise CannotOpenRegistry(f"{path} holds no token of Consul's: one word is expected")
        return token


class _Http(consul.aio.HTTPClient):  # type: ignore[misc]
    def __init__(self, host: str, port: int, scheme: str, tls: ssl.SSLContext | None) -> None:
        consul.base.HTTPClient.__init__(self, f"[{host}]" if ":" in host else host, port, scheme)
        self.loop = None
        # Blocking queries hold a connection each; calls are bounded by whoever makes them.
        connector = aiohttp.TCPConnector(ssl=tls if tls is not None else True, limit=0)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=None)
        )

    async def _request(
        self,
        callback: Callable[[Any], Any],
        method: str,
        uri: str,
        headers: dict[str, str] | None = None,
        data: str | bytes | None = None,
        **_: object,
    ) -> Any:
        async with self._session.request(method, uri, headers=headers, data=data) as answer:
            body = await answer.text(encoding="utf-8", errors="replace")
            return callback(consul.base.Response(answer.status, answer.headers, body))


class _Api(consul.aio.Consul):  # type: ignore[misc]
    def __init__(self, http: _Http, datacenter: str | None) -> None:
        self._connected = http
        super().__init__(http.host, http.port, scheme=http.scheme, dc=datacenter, verify=False)

    def http_connect(self, *_: object, **__: object) -> _Http:
        return self._connected


def _tls(settings: ConsulSettings) -> ssl.SSLContext | None:
    if settings.scheme == "http":
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca)
        if settings.certificate is not None:
            context.load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as error:
        files = (settings.ca, settings.certificate, settings.key)
        named = ", ".join(str(f) for f in files if f is not None)
        raise CannotOpenRegistry(f"cannot use {named} for Consul: {error}") from error
    return context
