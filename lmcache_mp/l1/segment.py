"""The files of L1: the segment that clients map, and the state file that the engine alone maps.

The engine maps the state file and never the segment: it does not touch KV bytes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lmcache_mp import access
from lmcache_mp.l1.geometry import HEADER_BYTES, Geometry, StateFileMismatch
from lmcache_mp.l1.room import room
from lmcache_mp.l1.slab import default_page_bytes
from lmcache_mp.l1.state_file import StateFile
from lmcache_mp.rundir import L1Files, boot_id
from lmcache_mp.units import Size

MIN_L1_BYTES = 1 << 20

_AS_IT_LIES = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""The names are known and /dev/shm is everybody's: what lies there may be a trap."""

Mapped = tuple[mmap.mmap, StateFile]


class L1Unusable(Exception):
    """L1 cannot be made as asked for; the sentence says why and what to change."""


@dataclass(slots=True)
class L1Store:
    """The open files of one L1. `state_descriptor` holds the lock that makes it ours."""

    files: L1Files
    state: StateFile
    mapping: mmap.mmap
    state_descriptor: int
    adoptable: bool
    """Whether the records are those of an earlier engine."""
    cold_reason: str
    """Why they are not, if there was something."""

    def close(self) -> None:
        """Let go of both files, and of the lock."""
        self.state.release()
        self.mapping.close()  # it has a descriptor of its own, which holds the lock too
        os.close(self.state_descriptor)


def open_store(files: L1Files, l1_bytes: int, *, adopt: bool, group: int | None = None) -> L1Store:
    """Open an L1 of that size: the one that is there if it fits and `adopt` says so, or a new one.

    The segment is opened to the members of `group`, the state file to nobody. Raises `L1Unusable`.
    """
    if l1_bytes < MIN_L1_BYTES:
        raise L1Unusable(
            f"L1 of {Size(l1_bytes)} is smaller than {Size(MIN_L1_BYTES)}: raise --l1-size"
        )
    descriptor = _locked(files.state)
    try:
        reason = "not asked to adopt"
        if adopt:
            try:
                mapping, state = _existing(files, descriptor, l1_bytes)
            except StateFileMismatch as mismatch:
                reason = str(mismatch)
            except FileNotFoundError:
                reason = "the segment is gone"
            else:
                access.share(files.segment, group, access.SEGMENT)
                return L1Store(files, state, mapping, descriptor, True, "")
        fresh = os.fstat(descriptor).st_size == 0 and not files.segment.exists()
        mapping, state = _new(files, descriptor, l1_bytes)
        access.share(files.segment, group, access.SEGMENT)
        return L1Store(files, state, mapping, descriptor, False, "" if fresh else reason)
    except BaseException:
        if os.fstat(descriptor).st_size == 0:  # of no use to anybody
            files.state.unlink(missing_ok=True)
        os.close(descriptor)
        raise


def _locked(path: Path) -> int:
    """A descriptor of the state file, new or old, that only this engine has a lock on."""
    with _explained(path.parent):
        mode = path.parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise L1Unusable(
                f"everybody may remove L1 from {path.parent}, whose mode is"
                f" {stat.S_IMODE(mode):04o}: chmod +t {path.parent}, or choose another --l1-dir"
            )
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _AS_IT_LIES, 0o600)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
        os.close(descriptor)
        raise L1Unusable(
            f"{path} is not this server's own file but one of uid {found.st_uid}: have it removed,"
            " or choose another --name or --l1-dir"
        )
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise L1Unusable(
            f"{path} is in use by another engine: two servers on one machine need different names"
            " (--name) or L1 directories (--l1-dir)"
        ) from None
    return descriptor


def recorded_l1_bytes(files: L1Files) -> int | None:
    """The size of the L1 that is there; None if there is none to be believed."""
    with contextlib.suppress(OSError, StateFileMismatch):
        descriptor = os.open(files.state, os.O_RDONLY | _AS_IT_LIES)
        with open(descriptor, "rb") as file:
            return Geometry.read(file.read(HEADER_BYTES)).l1_bytes
    return None


def _existing(files: L1Files, descriptor: int, l1_bytes: int) -> Mapped:
    size = os.fstat(descriptor).st_size
    if size == 0:
        raise StateFileMismatch("the state file is empty")
    mapping = mmap.mmap(descriptor, size)
    buffer = memoryview(mapping)
    geometry = Geometry.from_header(buffer)
    segment = files.segment.lstat()
    if geometry.boot_id != boot_id():
        raise StateFileMismatch("the state file is of an earlier boot")
    if geometry.l1_bytes != l1_bytes or geometry.page_bytes != default_page_bytes(l1_bytes):
        raise StateFileMismatch(
            f"the state file is of an L1 of {Size(geometry.l1_bytes)}, now it is {Size(l1_bytes)}"
        )
    ours = (geometry.segment_inode, geometry.l1_bytes, os.geteuid())
    if (segment.st_ino, segment.st_size, segment.st_uid) != ours:
        raise StateFileMismatch("the segment is another one than the state file's")
    state = StateFile(buffer, geometry, _backing(descriptor))
    if segment.st_blocks * 512 < state.populated_bytes:
        raise StateFileMismatch(
            f"the segment has {segment.st_blocks * 512} of its {state.populated_bytes} bytes"
        )
    return mapping, state


def _new(files: L1Files, descriptor: int, l1_bytes: int) -> Mapped:
    directory = files.segment.parent
    with _explained(directory):
        with contextlib.suppress(FileNotFoundError):
            files.segment.unlink()
        os.ftruncate(descriptor, 0)
        free = room(directory)
        if l1_bytes > free.available_bytes:
            raise L1Unusable(
                f"L1 of {Size(l1_bytes)} does not fit: {Size(free.available_bytes >> 20 << 20)}"
                f" are left ({free.bound_by}): lower --l1-size, or choose a larger --l1-dir"
            )
        try:
            geometry = Geometry(
                l1_bytes=l1_bytes,
                page_bytes=default_page_bytes(l1_bytes),
                segment_inode=_new_segment(files.segment, l1_bytes),
                l1_id=secrets.token_bytes(16),
                boot_id=boot_id(),
            )
            os.ftruncate(descriptor, geometry.file_bytes)
            os.posix_fallocate(descriptor, 0, geometry.slots_at)
        except OSError:  # nothing is to be left of it
            files.segment.unlink(missing_ok=True)
            os.ftruncate(descriptor, 0)
            raise
    mapping = mmap.mmap(descriptor, geometry.file_bytes)
    state = StateFile(memoryview(mapping), geometry, _backing(descriptor))
    state.format()
    return mapping, state


def _new_segment(path: Path, l1_bytes: int) -> int:
    """Make the segment, all of it a hole; returns its inode."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, l1_bytes)
        return os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)


def _backing(descriptor: int) -> Callable[[int, int], None]:
    def back(offset: int, length: int) -> None:
        os.posix_fallocate(descriptor, offset, length)

    return back


@contextlib.contextmanager
def _explained(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        if fault.errno == errno.ENOSPC:
            what = f"{directory} is full: make room there, or choose another --l1-dir"
        else:
            what = f"{fault.strerror}: choose another directory with --l1-dir"
        raise L1Unusable(f"L1 files in {directory} cannot be made: {what}") from None
