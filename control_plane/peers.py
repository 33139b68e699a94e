"""Who is at the other end of a gRPC call: the principal in its certificate."""

from __future__ import annotations

from typing import Any

from runtime.identity import IdentityError, Principal, principal_of_pem


def principal_of_call(context: Any) -> Principal:
    """The caller's principal; raises `IdentityError`.

    `context` is a `grpc.aio.ServicerContext`. TLS has checked the certificate's chain already.
    """
    certificates = context.auth_context().get("x509_pem_cert", [])
    if not certificates:
        raise IdentityError("the call came without a certificate")
    return principal_of_pem(certificates[0], "the caller's certificate")


def speaks_for(principal: Principal, node_id: str) -> bool:
    """Whether `node_id` is one of the principal's own: itself, or `/<worker>` after it where it
    has several processes."""
    own = str(principal)
    worker = node_id.removeprefix(f"{own}/")
    return node_id == own or (
        worker != node_id and 0 < len(worker) <= 63 and "/" not in worker and worker.isprintable()
    )
