"""`fs`: a directory on a local disk or a shared filesystem; several servers may use the same one.

One file per object, 0600, below 256 directories (`names`), written aside and renamed (`directory`).
Which objects there are is kept in memory for eviction only (`catalogue`, `room`), and made up from
the files in the background (`walker`); whether one is there is always asked of the filesystem, so
what other servers add or remove is seen at once.

The capacity is one of the directory. What others write to it counts within a minute.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Annotated

from msgspec import Meta
from typing_extensions import override

from lmcache_mp import l2
from lmcache_mp.l2.fs.directory import Directory
from lmcache_mp.l2.fs.faults import FULL, explained
from lmcache_mp.l2.fs.names import FAN_OUT, key_of, object_path
from lmcache_mp.l2.fs.room import Room
from lmcache_mp.l2.fs.walker import Walker
from lmcache_mp.logging import init_logger
from lmcache_mp.units import Size

log = init_logger(__name__)


class Config(l2.AdapterConfig, frozen=True, kw_only=True):
    """Where, and how much."""

    path: Annotated[str, Meta(pattern="^/")]
    """Must exist: a mount that is missing is not to fill the disk below it."""
    direct: bool = False
    """Past the page cache (O_DIRECT): it is L1's memory that is to hold what is read again."""
    capacity: Size | None = None
    """Of all objects together. Unset: what the filesystem has, but for a 20th or a GiB."""


class Adapter(l2.Adapter[Config]):
    """See the module."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        try:
            self._directory = Directory(config.path, direct=config.direct)
        except OSError as fault:
            raise explained(fault, config.path, f"open {config.path}") from None
        try:
            _check(self._directory, config)
            self._room = Room(self._directory, config.capacity)
        except OSError as fault:
            self._directory.close()
            raise explained(fault, config.path, f"use {config.path}") from None
        except l2.AdapterError:
            self._directory.close()
            raise
        self._walker = Walker(self._directory, self._room)

    @override
    def lookup(self, keys: Sequence[bytes]) -> Sequence[bool]:
        try:
            return [self._directory.length(object_path(key)) is not None for key in keys]
        except OSError as fault:
            raise self._explained(fault, "look into") from None

    @override
    def store(self, key: bytes, parts: Sequence[memoryview]) -> None:
        path = object_path(key)
        size = sum(len(part) for part in parts)
        try:
            if self._directory.length(path) == size:  # one of another length is damaged
                self._room.used(key, size)
                return
            with self._room.reserved(key, size):
                try:
                    self._directory.write(path, parts, size)
                except OSError as fault:
                    if fault.errno not in FULL or self._room.evict(2 * size) == 0:
                        raise
                    self._directory.write(path, parts, size)
        except OSError as fault:
            raise self._explained(fault, "write", path) from None

    @override
    def load(self, key: bytes, parts: Sequence[memoryview]) -> int | None:
        path = object_path(key)
        size = sum(len(part) for part in parts)
        try:
            length = self._directory.read(path, parts, size)
        except OSError as fault:
            raise self._explained(fault, "read", path) from None
        if length is None:
            self._room.forget(key)
        else:
            self._room.used(key, length)
        return length

    @override
    def delete(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            path = object_path(key)
            try:
                self._directory.remove(path)
            except OSError as fault:
                raise self._explained(fault, "remove", path) from None
            self._room.forget(key)

    @override
    def scan(self) -> Iterator[bytes]:
        for first in range(len(FAN_OUT)):
            try:
                with self._directory.entries(first) as entries:
                    files = [
                        entry.name for entry in entries if entry.is_file(follow_symlinks=False)
                    ]
            except OSError as fault:
                raise self._explained(fault, "list", FAN_OUT[first]) from None
            for name in files:
                key = key_of(name, first)
                if key is not None:
                    yield key

    @override
    def close(self) -> None:
        self._walker.close()
        self._directory.close()

    @override
    def figures(self) -> dict[str, int | float]:
        return {
            "used_bytes": self._room.used_bytes,
            "objects": self._room.objects,
            "evicted_objects": self._room.evicted_objects,
            "scanned": int(self._walker.scanned),
        }

    def _explained(self, fault: OSError, verb: str, path: str = "") -> l2.AdapterError:
        whole_path = os.path.join(self.config.path, path)
        return explained(fault, self.config.path, f"{verb} {whole_path}")


def _check(directory: Directory, config: Config) -> None:
    """Raises `AdapterError` or `OSError` unless the directory can be used as configured."""
    path = config.path
    if os.fstat(directory.descriptor).st_mode & stat.S_IWOTH:
        raise l2.AdapterError(
            f"everybody may write to {path}, and so change what the cache answers: chmod o-w"
            f" {path}, or name a directory below it",
            lasting=True,
        )
    with os.scandir(directory.descriptor) as entries:
        for entry in entries:
            if entry.name in FAN_OUT and not entry.is_dir(follow_symlinks=False):
                raise l2.AdapterError(
                    f"{path}/{entry.name} is not a directory: remove it", lasting=True
                )
    try:
        directory.probe()
    except OSError as fault:
        if fault.errno in FULL:  # what is there can be read, and evicted
            log.warning("%s", explained(fault, path, f"write to {path}"))
            return
        if fault.errno != errno.EINVAL or not config.direct:
            raise
        raise l2.AdapterError(
            f"the filesystem of {path} does not take O_DIRECT: leave `direct` out", lasting=True
        ) from None
