"""Moving many bytes in and out of L1, beside a copy between the same kinds of mapping.

The floor copies between the same private buffer of one chunk, as an engine's staging buffer is, and
another file of /dev/shm, mapped and populated as L1 is, by slices of the same size. Both files are
passed through from end to end, so that each copy finds L1 and its double equally cold.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.harness import Figure, on_cpus, pin, take_turns
from benchmarks.hot_path.effort import Effort
from benchmarks.hot_path.place import connected, engine_pid, second_cpu
from benchmarks.hot_path.prompts import FreshPrompts, prompt
from benchmarks.latency import Latency
from benchmarks.server import own_server
from lmcache_mp.client import CacheClient, Namespace
from lmcache_mp.l1.room import room
from lmcache_mp.madvise import MADV_HUGEPAGE, MADV_POPULATE_WRITE, address_of, madvise
from lmcache_mp.units import Size, format_bytes

SHARED_MEMORY = Path("/dev/shm")
ROOM_FOR_EACH = 4
"""L1 is twice what is copied; the floor's file and some air are one each."""


def figures(effort: Effort, chunk_bytes: int, bar: str) -> Iterator[Figure]:
    """Retrieve, then store, in chunks of one size."""
    copied_bytes = _that_fit(effort.copied_bytes) // chunk_bytes * chunk_bytes
    cpus = sorted(os.sched_getaffinity(0))
    namespace = Namespace(model="copies", dtype="uint8", shard_bytes=chunk_bytes)
    with own_server(Size(2 * copied_bytes)) as run_dir:
        pin(engine_pid(run_dir), second_cpu(cpus))
        with (
            on_cpus(cpus[:1]),
            connected(run_dir, namespace) as cache,
            _like_l1(copied_bytes) as l1_like,
            _private(chunk_bytes) as private,
        ):
            copies = Copies(cache, private, l1_like)
            what = f"{format_bytes(copied_bytes)} in {format_bytes(chunk_bytes)} chunks"
            copies.store()  # once round all of L1
            copies.store()
            yield copies.figure(f"store {what}", bar, copies.write, copies.store, effort.copies)
            copies.keep()
            yield copies.figure(
                f"retrieve {what}", bar, copies.read, copies.retrieve, effort.copies
            )


class Copies:
    """Copies between a private buffer and shared memory, both ways."""

    def __init__(self, cache: CacheClient, private: memoryview, l1_like: memoryview) -> None:
        self._cache = cache
        self._private = private
        self._l1_like = l1_like
        self._starts = range(0, len(l1_like), len(private))
        self._fresh = FreshPrompts()
        self._kept = prompt(0, len(self._starts))

    def read(self) -> None:
        """The floor of `retrieve`."""
        private, l1_like, step = self._private, self._l1_like, len(self._private)
        for start in self._starts:
            private[:] = l1_like[start : start + step]

    def write(self) -> None:
        """The floor of `store`."""
        private, l1_like, step = self._private, self._l1_like, len(self._private)
        for start in self._starts:
            l1_like[start : start + step] = private

    def retrieve(self) -> None:
        """All of the kept prompt."""
        private = self._private
        with self._cache.retrieve(self._kept) as hit:
            for _, view in hit.slots():
                private[:] = view
        assert len(hit) == len(self._starts)

    def store(self) -> None:
        """A prompt that is not there; what it needs is evicted."""
        self._fresh.make(1, len(self._starts))
        private = self._private
        with self._cache.store(self._fresh.take()) as batch:
            for _, view in batch.slots():
                view[:] = private
        assert batch.committed_chunks == len(self._starts)

    def keep(self) -> None:
        """Store the prompt that is retrieved."""
        with self._cache.store(self._kept) as batch:
            for _ in batch.slots():
                pass

    def figure(
        self,
        name: str,
        bar: str,
        floor: Callable[[], None],
        subject: Callable[[], None],
        rounds: int,
    ) -> Figure:
        """Bytes a second of both."""
        floor_s, subject_s = take_turns(floor, subject, rounds=rounds, calls=1)
        gb = len(self._l1_like) / 1e9
        return Figure(
            name=name,
            unit="GB/s",
            floor=round(gb / statistics.median(floor_s), 2),
            subject=round(gb / statistics.median(subject_s), 2),
            bar=bar,
            floor_latency=Latency.of(floor_s),
            subject_latency=Latency.of(subject_s),
        )


@contextlib.contextmanager
def _like_l1(size: int) -> Iterator[memoryview]:
    """A file of shared memory, mapped and populated."""
    with tempfile.TemporaryFile(dir=SHARED_MEMORY) as file:
        file.truncate(size)
        with _populated(mmap.mmap(file.fileno(), size)) as view:
            yield view


@contextlib.contextmanager
def _private(size: int) -> Iterator[memoryview]:
    """Memory of this process."""
    with _populated(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)) as view:
        yield view


@contextlib.contextmanager
def _populated(mapping: mmap.mmap) -> Iterator[memoryview]:
    with mapping, memoryview(mapping) as view:
        with contextlib.suppress(OSError):
            madvise(address_of(mapping), len(view), MADV_HUGEPAGE)  # as the server does for L1
        madvise(address_of(mapping), len(view), MADV_POPULATE_WRITE)
        yield view


def _that_fit(copied_bytes: int) -> int:
    available = room(SHARED_MEMORY).available_bytes // ROOM_FOR_EACH
    if available < copied_bytes:
        print(f"memory is short: copying {format_bytes(available)} only", file=sys.stderr)
    return min(copied_bytes, available)
