"""The mesh's own certificate authority: who may speak to whom is decided by role."""

from control_plane.pki.authority import create_ca, identity_files, issue
from control_plane.pki.files import AuthorityError

__all__ = ["AuthorityError", "create_ca", "identity_files", "issue"]
