"""Who is alive: a client locks a file of its own in the run directory for as long as it lives.

The kernel drops the lock when the process is gone, and not before: not when it is stopped, busy or
slow. Open file description locks it must be: POSIX record locks end with any close of the file in
the process, so that an engine and a client in one process would look dead to each other.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import secrets
import stat
import struct
import time
from collections.abc import Container, Generator
from dataclasses import dataclass
from pathlib import Path

CLIENT_ID_BYTES = 16

DRAFT_S = 10.0
"""How old a file that is not published yet must be to be taken for a dead client's."""

SWEEP_FILES = 256
"""Looked at in one step of a sweep: 2 ms."""

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of fcntl(2), 64-bit
_WRITE_LOCK = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_READ_LOCK = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
_READABLE = 0o640
"""For a server under another user, as its group's. Who may only read cannot lock for writing."""


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
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WRITE_LOCK)
            os.fchmod(descriptor, _READABLE)  # no sooner: nobody else's lock may come first
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
    """A descriptor to watch a client's file by; None if there is no such file for us."""
    try:
        return _open(clients / client_id.hex())
    except OSError as fault:
        if fault.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # it may well be there
            raise
        return None


def remove_lifeline(clients: Path, client_id: bytes) -> None:
    """Remove a client's file, if it is one still: what its owner put in its place may stay."""
    with contextlib.suppress(OSError):
        (clients / client_id.hex()).unlink()


def is_locked(descriptor: int) -> bool:
    """Whether another open file description holds the lock. Takes a microsecond.

    What is asked is whether a reader would have to wait: the read locks of those who may only read
    the file do not keep its owner alive.
    """
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _READ_LOCK)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def living_clients(clients: Path) -> set[bytes]:
    """The ids of all clients that live. The files of the dead are removed."""
    with os.scandir(clients) as entries:
        return {client_id for entry in entries if (client_id := _living(entry)) is not None}


class Sweep:
    """Removes the files of the dead, a few at a time: members of an access group may make many."""

    def __init__(self, clients: Path) -> None:
        self._clients = clients
        self._entries: Generator[os.DirEntry[str], None, None] | None = None

    def close(self) -> None:
        """Let go of the directory, where a round has been left half-way."""
        if self._entries is not None:
            self._entries.close()
            self._entries = None

    def step(self, besides: Container[bytes]) -> None:
        """Look at the next files but those of the clients `besides`."""
        with contextlib.suppress(FileNotFoundError):  # somebody removed the run directory
            if self._entries is None:
                self._entries = _entries(self._clients)
            looked_at = 0
            for entry in itertools.islice(self._entries, SWEEP_FILES):
                looked_at += 1
                if _client_id(entry) not in besides:
                    _living(entry)
            if looked_at < SWEEP_FILES:
                self._entries = None


def _entries(clients: Path) -> Generator[os.DirEntry[str], None, None]:
    with os.scandir(clients) as entries:
        yield from entries


def _client_id(entry: os.DirEntry[str]) -> bytes:
    """Whose file it would be; empty if nobody's."""
    try:
        client_id = bytes.fromhex(entry.name.removeprefix("."))
    except ValueError:
        return b""
    return client_id if len(client_id) == CLIENT_ID_BYTES else b""


def _living(entry: os.DirEntry[str]) -> bytes | None:
    """The client's id if the file is that of a living one; that of a dead one is removed."""
    client_id = _client_id(entry)
    if not client_id:
        return None
    try:
        if _is_draft(entry):
            return None
        descriptor = _open(Path(entry.path))
        try:
            if is_locked(descriptor):
                return client_id
        finally:
            os.close(descriptor)
        os.unlink(entry.path)
    except OSError:  # gone, or no client's
        pass
    return None


def _is_draft(entry: os.DirEntry[str]) -> bool:
    """Whether a client may just be about to lock and publish the file."""
    if not entry.name.startswith("."):
        return False
    return time.time() - entry.stat(follow_symlinks=False).st_ctime < DRAFT_S


def _open(path: Path) -> int:
    """For reading, which is enough to look at locks. Whatever lies there, this does not wait."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "no regular file", str(path))
    return descriptor
