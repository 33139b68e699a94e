"""The standard gRPC health service (grpc.health.v1) of a replica, for Consul's gRPC check.

It listens on an address of its own, in plain text, and tells nothing but whether the replica can
serve. Consul 1.8's check could use TLS, but shows no client certificate unless the agent itself is
configured with one of our CA (`enable_agent_tls_for_checks`), and replicas take nobody without.
Needs the extra `consul` (grpcio-health-checking).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from control_plane.membership.errors import CannotOpenRegistry
from topology.wire.channel import server_options

SERVICES = ("", "tradewind.control")  # "": the server as a whole


class HealthEndpoint(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """`await start()`, then `await close()`. `ready` is asked at each check."""

    def __init__(self, address: str, ready: Callable[[], bool]) -> None:
        self._address = address
        self._ready = ready
        self._server: grpc.aio.Server | None = None
        self.port = 0

    @property
    def serving(self) -> bool:
        return self._server is not None

    async def start(self) -> None:
        """Raises `CannotOpenRegistry` where the address is taken."""
        server = grpc.aio.server(
            options=[*server_options(), ("grpc.max_concurrent_streams", 16)],
            maximum_concurrent_rpcs=64,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self, server)
        try:
            self.port = server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise CannotOpenRegistry(
                f"cannot listen on {self._address} for health checks: {error}",
                hint="`membership.consul.health` names the address",
            ) from error
        await server.start()
        self._server = server

    async def close(self) -> None:
        if self._server is not None:
            await self._server.stop(0)

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.service not in SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        statuses = health_pb2.HealthCheckResponse
        return statuses(status=statuses.SERVING if self._ready() else statuses.NOT_SERVING)
