"""How much may be kept, and what goes first when it is too much."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Generator

from lmcache_mp.l2 import AdapterError
from lmcache_mp.l2.fs.catalogue import Catalogue
from lmcache_mp.l2.fs.directory import Directory
from lmcache_mp.l2.fs.names import object_path
from lmcache_mp.units import Size, format_bytes

MOST_RESERVE = 1 << 30
RESERVE_SHARE = 20
"""A 20th of the filesystem is left free, but not more than a GiB."""

_MEASURE_S = 1.0
"""Between two looks at the filesystem; meanwhile its free bytes are reckoned."""

_EVICT_AT_A_TIME = 4
"""A store evicts no more than so many times its own size; the rest goes in the background."""


class Room:
    """The catalogue, the capacity and the filesystem's free bytes, for several threads."""

    def __init__(self, directory: Directory, capacity: Size | None) -> None:
        self.evicted_objects = 0
        self._directory = directory
        self._capacity = capacity
        self._catalogue = Catalogue()
        self._under_way_bytes = 0
        self._lock = threading.Lock()
        """Of all the above, never held during I/O."""
        self._free_bytes = self._reserve_bytes = 0
        self._measured_s = -_MEASURE_S
        self._measure()

    @property
    def used_bytes(self) -> int:
        """Of all objects, as far as is known."""
        return self._catalogue.used_bytes

    @property
    def objects(self) -> int:
        """How many, as far as is known."""
        return self._catalogue.objects

    def used(self, key: bytes, size: int) -> None:
        """An object was seen to be there, by somebody who wants it."""
        with self._lock:
            self._catalogue.put(key, size, self._directory.now_s())

    def found(self, key: bytes, size: int, modified_s: float) -> None:
        """It is there; unless somebody used it here, it counts as used when it was written."""
        with self._lock:
            self._catalogue.put(key, size, modified_s)

    def forget(self, key: bytes) -> None:
        """It is not there, or no longer."""
        with self._lock:
            self._free_bytes += self._catalogue.forget(key)

    def known(self, first: int) -> set[bytes]:
        """The keys that begin with this byte."""
        with self._lock:
            return self._catalogue.keys_of(first)

    @contextlib.contextmanager
    def reserved(self, key: bytes, size: int) -> Generator[None, None, None]:
        """Room to write an object, made if need be; it is there when this ends without a fault."""
        self._make(size)
        try:
            yield
        except BaseException:
            with self._lock:
                self._under_way_bytes -= size
            raise
        with self._lock:
            self._under_way_bytes -= size
            self._free_bytes -= size
            self._catalogue.put(key, size, self._directory.now_s())

    def evict(self, wanted_bytes: int) -> int:
        """Evict what was used longest ago, of so many bytes at least; of how many it was."""
        with self._lock:
            victims = self._take_oldest(wanted_bytes)
        self._remove(victims)
        return _bytes_of(victims)

    def excess_bytes(self) -> int:
        """How much too much there is at the moment."""
        self._measure()
        with self._lock:
            return self._short_of(0)

    def _make(self, size: int) -> None:
        """Count `size` as under way, evicting for it; raises `AdapterError`."""
        if self._capacity is not None and size > self._capacity:
            raise AdapterError(
                f"{self._directory.path}: an object of {Size(size)} is larger than the capacity of"
                f" {self._capacity}: raise `capacity`",
                lasting=True,
            )
        self._measure()
        with self._lock:
            short = self._short_of(size)
            victims = self._take_oldest(min(short, _EVICT_AT_A_TIME * size))
            refusal = self._refusal(size) if _bytes_of(victims) < min(short, size) else None
            self._under_way_bytes += size
        try:
            self._remove(victims)
            if refusal is not None:
                raise refusal
        except BaseException:
            with self._lock:
                self._under_way_bytes -= size
            raise

    def _refusal(self, size: int) -> AdapterError:
        path = self._directory.path
        if self._free_bytes - self._under_way_bytes - size >= self._reserve_bytes:
            return AdapterError(
                f"{path}: no room for {Size(size)}: stores under way take"
                f" {format_bytes(self._under_way_bytes)} of the capacity of {self._capacity}"
            )
        return AdapterError(
            f"{path}: no room for {Size(size)}: {format_bytes(self._free_bytes)} of its filesystem"
            f" are free, {format_bytes(self._reserve_bytes)} of which stay free, and nothing is"
            " left here to evict: make room there",
            lasting=True,
        )

    def _take_oldest(self, wanted_bytes: int) -> list[tuple[bytes, int]]:
        victims = self._catalogue.take_oldest(wanted_bytes)
        self.evicted_objects += len(victims)
        self._free_bytes += _bytes_of(victims)  # as soon as they are removed
        return victims

    def _remove(self, victims: list[tuple[bytes, int]]) -> None:
        for key, _ in victims:
            self._directory.remove(object_path(key))

    def _short_of(self, size: int) -> int:
        """How many bytes too few there are for so many more."""
        coming = self._under_way_bytes + size
        short = coming + self._reserve_bytes - self._free_bytes
        if self._capacity is not None:
            short = max(short, self._catalogue.used_bytes + coming - self._capacity)
        return short

    def _measure(self) -> None:
        """Look how much of the filesystem is free, unless somebody did a moment ago."""
        now_s = time.monotonic()
        if now_s - self._measured_s < _MEASURE_S:
            return
        self._measured_s = now_s
        found = os.fstatvfs(self._directory.descriptor)
        whole = found.f_blocks * found.f_frsize
        with self._lock:
            self._reserve_bytes = min(MOST_RESERVE, whole // RESERVE_SHARE)
            # Some filesystems do not know.
            self._free_bytes = found.f_bavail * found.f_frsize if whole else sys.maxsize


def _bytes_of(objects: list[tuple[bytes, int]]) -> int:
    return sum(size for _, size in objects)
