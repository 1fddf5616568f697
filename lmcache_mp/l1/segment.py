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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lmcache_mp.l1.geometry import Geometry, StateFileMismatch
from lmcache_mp.l1.room import room
from lmcache_mp.l1.slab import default_page_bytes
from lmcache_mp.l1.state_file import StateFile
from lmcache_mp.rundir import L1Files, boot_id
from lmcache_mp.units import Size

MIN_L1_BYTES = 1 << 20


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


def open_store(files: L1Files, l1_bytes: int, *, adopt: bool) -> L1Store:
    """Open an L1 of that size: the one that is there if it fits and `adopt` says so, or a new one.

    Raises `L1Unusable`.
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
            except (StateFileMismatch, FileNotFoundError) as mismatch:
                reason = str(mismatch)
            else:
                return L1Store(files, state, mapping, descriptor, True, "")
        fresh = os.fstat(descriptor).st_size == 0
        mapping, state = _new(files, descriptor, l1_bytes)
        return L1Store(files, state, mapping, descriptor, False, "" if fresh else reason)
    except BaseException:
        if os.fstat(descriptor).st_size == 0:  # of no use to anybody
            files.state.unlink(missing_ok=True)
        os.close(descriptor)
        raise


def _locked(path: Path) -> int:
    """A descriptor of the state file, new or old, that only this engine has a lock on."""
    with _explained(path.parent):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise L1Unusable(
            f"{path} is in use by another engine: two servers on one machine need different names"
            " (--name) or L1 directories (--l1-dir)"
        ) from None
    return descriptor


def _existing(files: L1Files, descriptor: int, l1_bytes: int) -> Mapped:
    size = os.fstat(descriptor).st_size
    if size == 0:
        raise StateFileMismatch("it is empty")
    mapping = mmap.mmap(descriptor, size)
    buffer = memoryview(mapping)
    geometry = Geometry.from_header(buffer)
    segment = files.segment.stat()
    if geometry.boot_id != boot_id():
        raise StateFileMismatch("it is of an earlier boot")
    if geometry.l1_bytes != l1_bytes or geometry.page_bytes != default_page_bytes(l1_bytes):
        raise StateFileMismatch(
            f"it is of an L1 of {Size(geometry.l1_bytes)}, now it is {Size(l1_bytes)}"
        )
    if (segment.st_ino, segment.st_size) != (geometry.segment_inode, geometry.l1_bytes):
        raise StateFileMismatch("the segment beside it is another one's")
    return mapping, StateFile(buffer, geometry, _backing(descriptor))


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
        segment = os.open(files.segment, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(segment, l1_bytes)
            inode = os.fstat(segment).st_ino
        finally:
            os.close(segment)
        geometry = Geometry(
            l1_bytes=l1_bytes,
            page_bytes=default_page_bytes(l1_bytes),
            segment_inode=inode,
            l1_id=secrets.token_bytes(16),
            boot_id=boot_id(),
        )
        os.ftruncate(descriptor, geometry.file_bytes)
        os.posix_fallocate(descriptor, 0, geometry.slots_at)
    mapping = mmap.mmap(descriptor, geometry.file_bytes)
    state = StateFile(memoryview(mapping), geometry, _backing(descriptor))
    state.format()
    return mapping, state


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
