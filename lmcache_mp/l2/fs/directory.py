"""The files: written aside and renamed, read in one go. Everything here raises `OSError` as it is.

All paths are relative to a descriptor of the directory, so whatever is mounted over it later, or
taken away, nothing lands on another filesystem.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import time
from collections.abc import Generator, Iterator, Sequence

from lmcache_mp.l2.fs.names import FAN_OUT, Writer, object_path

_PARTS_AT_A_TIME = 1024  # IOV_MAX


class Directory:
    """An open directory. Any number of threads may call it."""

    def __init__(self, path: str, *, direct: bool) -> None:
        self.path = path
        self.writer = Writer()
        self._direct = os.O_DIRECT if direct else 0
        self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._clock_s = time.time() - time.monotonic()

    def close(self) -> None:
        """No other thread is in a call."""
        os.close(self.descriptor)

    def probe(self) -> None:
        """Write a page and remove it, which also tells what time it is for the filesystem."""
        aside = self.writer.aside(object_path(bytes(32)))
        descriptor = self._create(aside)
        try:
            with mmap.mmap(-1, mmap.PAGESIZE) as page:  # aligned
                os.pwritev(descriptor, [page], 0)
            self._clock_s = os.fstat(descriptor).st_mtime - time.monotonic()
        finally:
            os.close(descriptor)
            self.remove(aside)

    def now_s(self) -> float:
        """The time as the filesystem tells it, which may be another machine's."""
        return self._clock_s + time.monotonic()

    def length(self, path: str) -> int | None:
        """Bytes of a file; None if there is none."""
        try:
            found = os.stat(path, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def write(self, path: str, parts: Sequence[memoryview], size: int) -> None:
        """Make a file of the parts, whole or not at all.

        No fsync: rename shows a file whole to every reader; what a power failure tears is found out
        by the envelope's checksum, and losing an object costs a computation.
        """
        aside = self.writer.aside(path)
        descriptor = self._create(aside)
        try:
            try:
                done = 0
                while done < size:  # the kernel moves 2 GiB at a time, and 1024 parts
                    done += os.pwritev(descriptor, _rest(parts, done), done)
            finally:
                os.close(descriptor)  # where NFS tells that the disk is full
            os.rename(aside, path, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                self.remove(aside)
            raise

    def read(self, path: str, parts: Sequence[memoryview], size: int) -> int | None:
        """Fill the parts, of that size together, with a file: its length, None if there is none.

        Nothing is read if its length differs.
        """
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | self._direct
        try:
            descriptor = os.open(path, flags, dir_fd=self.descriptor)
        except OSError as fault:
            if fault.errno in (errno.ENOENT, errno.ELOOP):  # nothing, or a symbolic link
                return None
            raise
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                return None
            if found.st_size != size:
                return found.st_size
            done = 0
            while done < size:
                moved = os.preadv(descriptor, _rest(parts, done), done)
                if moved == 0:
                    break
                done += moved
            return done
        finally:
            os.close(descriptor)

    def remove(self, path: str) -> None:
        """Remove a file if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path, dir_fd=self.descriptor)

    @contextlib.contextmanager
    def entries(self, first: int) -> Generator[Iterator[os.DirEntry[str]], None, None]:
        """What is in the directory of keys that begin with this byte; nothing if there is none."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(FAN_OUT[first], flags, dir_fd=self.descriptor)
        except FileNotFoundError:
            yield iter(())
            return
        try:
            with os.scandir(descriptor) as found:
                yield found
        finally:
            os.close(descriptor)

    def _create(self, path: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | self._direct
        try:
            return os.open(path, flags, 0o600, dir_fd=self.descriptor)
        except FileNotFoundError:  # the first in its directory, or somebody emptied ours
            with contextlib.suppress(FileExistsError):
                os.mkdir(path[:2], 0o700, dir_fd=self.descriptor)
            return os.open(path, flags, 0o600, dir_fd=self.descriptor)


def _rest(parts: Sequence[memoryview], done: int) -> Sequence[memoryview]:
    """The parts without their first `done` bytes, as many as one call takes."""
    if done == 0 and len(parts) <= _PARTS_AT_A_TIME:
        return parts
    rest: list[memoryview] = []
    for part in parts:
        if done < len(part):
            rest.append(part[done:])
        done = max(0, done - len(part))
        if len(rest) == _PARTS_AT_A_TIME:
            break
    return rest
