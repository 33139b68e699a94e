"""Walks a folder of answers whole, to find out whether it can be read: exit status 0 if so.

LMDB maps its file into memory and trusts it, so a damaged one may kill whoever reads it. It is
therefore read by this program first, which nobody misses. It runs as a file of its own, with
nothing of ours but what is here: python check.py FOLDER.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import lmdb

# Number -> name and answer; name -> number; tenant and number -> nothing; tenant -> bytes.
TABLES = (b"answers", b"names", b"by_tenant", b"totals")
LENGTH_BYTES = 2  # of a name's length, before the name
TAG_BYTES = 16


def tag(name: bytes, payload: bytes | memoryview) -> bytes:
    """Binds what is kept to the name it is kept under: neither can stand with another."""
    digest = hashlib.blake2b(name, digest_size=TAG_BYTES, person=b"tw-answer")
    digest.update(payload)
    return digest.digest()


def parted(value: bytes | memoryview) -> tuple[bytes | memoryview, bytes | memoryview]:
    """A name, and what is kept under it."""
    end = LENGTH_BYTES + int.from_bytes(value[:LENGTH_BYTES], "big")
    return value[LENGTH_BYTES:end], value[end:]


def readable(folder: str) -> bool:
    """Whether all that is there hangs together."""
    environment = lmdb.open(folder, readonly=True, lock=False, max_dbs=len(TABLES), create=False)
    pages = environment.info()["last_pgno"] + 1
    size = Path(folder, "data.mdb").stat().st_size
    if pages * environment.stat()["psize"] > size:
        return False  # cut short
    tables = [environment.open_db(name, create=False) for name in TABLES]
    with environment.begin(buffers=True) as transaction:
        for _, value in transaction.cursor(tables[0]):
            name, kept = parted(value)
            if kept[:TAG_BYTES] != tag(bytes(name), kept[TAG_BYTES:]):
                return False
        for table in tables[1:]:
            for name, value in transaction.cursor(table):
                bytes(name), bytes(value)
    return True


if __name__ == "__main__":
    os.nice(19)
    sys.exit(0 if readable(sys.argv[1]) else 1)
