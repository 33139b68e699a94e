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
