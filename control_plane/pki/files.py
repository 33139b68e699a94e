"""Files that are never half-written, nor readable by more people than they should be."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import TradewindError


class AuthorityError(TradewindError):
    """A CA or certificate cannot be made from what was given."""


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the CA in `directory` alone: two who issue into one folder would mix their files.

    Raises `AuthorityError` where somebody else holds it. The lock goes with the process.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise AuthorityError(
            f"no CA in {directory}: {error.strerror}", hint="`tradewind pki init` makes one"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise AuthorityError(
            f"somebody else is issuing with the CA in {directory}", hint="try again"
        ) from error
    finally:
        os.close(descriptor)


def write_all(*files: tuple[Path, bytes, int]) -> None:
    """Write `(path, data, mode)` each; all are on the disk before the first takes its place.

    A file that is replaced keeps its owner, where we may say so.
    """
    written: list[tuple[Path, Path]] = []
    try:
        for path, data, mode in files:
            written.append((_aside(path, data, mode), path))
        for temporary, path in written:
            temporary.replace(path)
    except OSError as error:
        for temporary, _ in written:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise AuthorityError(f"cannot write {error.filename}: {error.strerror}") from error


def _aside(path: Path, data: bytes, mode: int) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):  # there is none yet, or we are not root
            before = path.stat()
            os.chown(temporary, before.st_uid, before.st_gid)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
