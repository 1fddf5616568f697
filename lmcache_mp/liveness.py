"""Who is alive: a client locks a file of its own in the run directory for as long as it lives.

The kernel drops the lock when the process is gone, and not before: not when it is stopped, busy or
slow. Open file description locks it must be: POSIX record locks end with any close of the file in
the process, so that an engine and a client in one process would look dead to each other.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
import time
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

CLIENT_ID_BYTES = 16

DRAFT_S = 10.0
"""How old a file that is not published yet must be to be taken for a dead client's."""

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of fcntl(2), 64-bit
_WHOLE_FILE = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


@dataclass(slots=True)
class LifeLine:
    """A client's locked file. The descriptor must not reach another process: fork closes it."""

    client_id: bytes
    descriptor: int
    inode: int

    @classmethod
    def create(cls, clients: Path) -> LifeLine:
        """Make, lock and publish the file of a new client; raises `OSError`."""
        client_id = secrets.token_bytes(CLIENT_ID_BYTES)
        draft = clients / f".{client_id.hex()}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(draft, flags, 0o600)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE_FILE)
            draft.rename(clients / client_id.hex())  # nobody sees it unlocked
            return cls(client_id, descriptor, os.fstat(descriptor).st_ino)
        except BaseException:
            os.close(descriptor)
            draft.unlink(missing_ok=True)
            raise

    def close(self) -> None:
        """Stop living. Idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def open_lifeline(clients: Path, client_id: bytes) -> int | None:
    """A descriptor to watch a client's file by; None if there is no such file."""
    try:
        return os.open(clients / client_id.hex(), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None


def is_locked(descriptor: int) -> bool:
    """Whether another open file description holds the lock. Takes a microsecond."""
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _WHOLE_FILE)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def living_clients(clients: Path, besides: Container[bytes] = ()) -> set[bytes]:
    """The ids of all clients that live, `besides` these. The files of the dead are removed."""
    living: set[bytes] = set()
    for path in clients.iterdir():
        try:
            client_id = bytes.fromhex(path.name.removeprefix("."))
            if client_id in besides or _is_draft(path):
                continue
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (ValueError, OSError):  # not a client's, or gone
            continue
        try:
            if is_locked(descriptor):
                living.add(client_id)
            else:
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
    return living


def _is_draft(path: Path) -> bool:
    """Whether a client may just be about to lock and publish the file."""
    return path.name.startswith(".") and time.time() - path.stat().st_mtime < DRAFT_S
