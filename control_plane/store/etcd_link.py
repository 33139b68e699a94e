"""One connection to one etcd member: calls on it, and what their failures mean."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import etcd3
import grpc
import grpc.aio
from etcd3 import etcdrpc

from control_plane.store.etcd_failures import Kind, MemberFailed, failed, failure_of
from control_plane.store.settings import EtcdSettings

# A listing's page and a watch's catch-up must fit; what does not is asked for in smaller pages,
# or listed anew.
_MAX_RECEIVE_BYTES = 32 * 2**20
_MAX_SEND_BYTES = 4 * 2**20
# A member that has lost its leader then says so, instead of serving a silent watch.
_REQUIRE_LEADER = ("hasleader", "true")


class Access:
    """What all links of one store share: credentials, the user's token, the cluster's id."""

    def __init__(self, settings: EtcdSettings) -> None:
        self.settings = settings
        self.token = ""
        self.cluster_id = 0
        self.closed = False

    def tls_version(self) -> tuple[int, ...]:
        """Changes when a TLS file does, so that renewed certificates are picked up."""
        files = (self.settings.ca, self.settings.certificate, self.settings.key)
        return tuple(_modified(file) for file in files if file is not None)

    def open_channel(self, address: str) -> grpc.aio.Channel:
        target, options = f"dns:///{address}", self._options()
        if not self.settings.ca:
            return grpc.aio.insecure_channel(target, options)
        ca, key, certificate = (
            str(file) if file else None
            for file in (self.settings.ca, self.settings.key, self.settings.certificate)
        )
        credentials = etcd3.MultiEndpointEtcd3Client.get_secure_creds(ca, key, certificate)
        return grpc.aio.secure_channel(target, credentials, options)

    def _options(self) -> list[tuple[str, int]]:
        return [
            # One TCP connection per channel: closing the channel closes it.
            ("grpc.use_local_subchannel_pool", 1),
            # The caller decides when to try again and where.
            ("grpc.enable_retries", 0),
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            # The least time between attempts is also how long one may take.
            ("grpc.min_reconnect_backoff_ms", self.settings.attempt_timeout_ms),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.max_receive_message_length", _MAX_RECEIVE_BYTES),
            ("grpc.max_send_message_length", _MAX_SEND_BYTES),
        ]


class Link:
    """A channel to the member at `address`. Every failure is a `MemberFailed`."""

    def __init__(self, address: str, access: Access) -> None:
        self.address = address
        self._access = access
        try:
            self.tls_version = access.tls_version()
            self._channel = access.open_channel(address)
        except OSError as error:
            raise failed(Kind.UNREACHED, f"{error.filename}: {error.strerror}") from error
        self._kv = etcdrpc.KVStub(self._channel)
        self._lease = etcdrpc.LeaseStub(self._channel)
        self._maintenance = etcdrpc.MaintenanceStub(self._channel)
        self._auth = etcdrpc.AuthStub(self._channel)
        self._watch = etcdrpc.WatchStub(self._channel)
        self.term = 0  # raft's, as of the last answer; it rises when the leader changes

    @property
    def connected(self) -> bool:
        """Whether there is a connection now. What is sent on it may arrive."""
        return self._channel.get_state() is grpc.ChannelConnectivity.READY

    async def greet(self, timeout_s: float) -> bool:
        """Connect if need be, and ask who is there; whether it knows its leader.

        Fails if nobody answers in time, or a member of another cluster does.
        """
        request = etcdrpc.StatusRequest()
        status = await self._answer(lambda: self._maintenance.Status(request, timeout=timeout_s))
        cluster_id = status.header.cluster_id
        self._access.cluster_id = self._access.cluster_id or cluster_id
        if cluster_id != self._access.cluster_id:
            ours = self._access.cluster_id
            raise failed(
                Kind.STRANGER,
                f"belongs to another etcd cluster ({cluster_id:x}, not {ours:x}); correct the "
                "endpoints, or restart this process if the cluster was replaced on purpose",
            )
        return bool(status.leader)

    async def call(self, method: str, request: Any, timeout_s: float) -> Any:
        """Call one of etcd's KV or Lease methods, authenticating first where that is needed."""
        service = self._lease if method.startswith("Lease") else self._kv
        for attempt in (1, 2):
            used = await self._token(timeout_s)
            send = partial(getattr(service, method), metadata=_metadata(used), timeout=timeout_s)
            if method == "LeaseKeepAlive":
                send = partial(_first_reply, send)
            try:
                return await self._answer(partial(send, request))
            except MemberFailed as error:
                self.reject_token(error, used)
                if error.failure.kind is not Kind.TOKEN:
                    raise
                if attempt == 2 or not used:
                    raise failed(Kind.REFUSED, error.failure.detail) from error
        raise AssertionError("unreachable")

    async def open_watch(self, request: Any, timeout_s: float) -> tuple[Any, str]:
        """A watch's stream with `request` sent on it, and the token that it used."""
        token = await self._token(timeout_s)
        try:
            stream = self._watch.Watch(metadata=_metadata(token))
        except grpc.aio.UsageError as error:
            raise failed(Kind.CLOSED, "the store is closed") from error
        await self._answer(lambda: stream.write(request), timeout_s)
        return stream, token

    async def read(self, stream: Any, timeout_s: float | None = None) -> Any:
        """The stream's next message."""
        message = await self._answer(stream.read, timeout_s)
        if message is grpc.aio.EOF:  # type: ignore[attr-defined]
            raise failed(Kind.NO_ANSWER, "the member ended the watch")
        return message

    def reject_token(self, error: MemberFailed, token: str) -> None:
        """Forget `token` if that was the trouble, so that the next call authenticates."""
        if error.failure.kind is Kind.TOKEN and self._access.token == token:
            self._access.token = ""

    async def close(self) -> None:
        await self._channel.close(None)

    async def _token(self, timeout_s: float) -> str:
        settings = self._access.settings
        if settings.password_file is None or self._access.token:
            return self._access.token
        try:
            password = settings.password_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise failed(Kind.REFUSED, f"cannot read the password: {error}") from error
        request = etcdrpc.AuthenticateRequest(name=settings.user, password=password)
        try:
            answer = await self._answer(lambda: self._auth.Authenticate(request, timeout=timeout_s))
        except MemberFailed as error:
            if "authentication is not enabled" in error.failure.detail:
                return ""
            # Nothing of the caller's was sent yet, whatever became of this call.
            raise failed(error.failure.kind, error.failure.detail) from error
        self._access.token = answer.token
        return self._access.token

    async def _answer(
        self, start: Callable[[], Awaitable[Any]], timeout_s: float | None = None
    ) -> Any:
        """The call's answer, with every way of failing turned into `MemberFailed`."""
        try:
            async with asyncio.timeout(timeout_s):
                answer = await start()
        except grpc.aio.AioRpcError as error:
            raise MemberFailed(failure_of(error.code(), error.details() or "")) from error
        except TimeoutError as error:
            raise failed(Kind.NO_ANSWER, "no answer in time", undone=False) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # gRPC reports a channel closed under a call as if the caller was cancelled.
            kind = Kind.CLOSED if self._access.closed else Kind.NO_ANSWER
            raise failed(kind, "the connection was closed", undone=False) from error
        except grpc.aio.UsageError as error:
            raise failed(Kind.CLOSED, str(error)) from error
        header = getattr(answer, "header", None)
        if header is not None:
            self.term = max(self.term, header.raft_term)
        return answer


async def _first_reply(open_stream: Callable[[], Any], request: Any) -> Any:
    """One request and one reply of a method that is a stream both ways."""
    stream = open_stream()
    try:
        await stream.write(request)
        reply = await stream.read()
        if reply is grpc.aio.EOF:  # type: ignore[attr-defined]
            raise failed(Kind.NO_ANSWER, "the member ended the call", undone=False)
        return reply
    finally:
        stream.cancel()


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    return (_REQUIRE_LEADER, ("token", token)) if token else (_REQUIRE_LEADER,)


def _modified(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0
