"""The whole way through engine, worker and envelope, beside the plain calls on the same disk.

What this is slower than the adapter by itself is the price of jobs over the bus and of checksums.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from benchmarks.chunk_bytes import ChunkBytes
from benchmarks.harness import Figure, take_turns
from benchmarks.hot_path.place import connected
from benchmarks.hot_path.prompts import prompt
from benchmarks.l2.batch import LOAD_BAR, STORE_BAR, Batch, batch, of_bytes
from benchmarks.l2.effort import Effort
from benchmarks.l2.fs import read_into, scratch, written_aside
from benchmarks.l2.node import adapter_of, node, wait_until
from lmcache_mp.client import CacheClient, ChunkKeys, Namespace
from lmcache_mp.client.leases import StoreBatch
from lmcache_mp.l2.fs.names import object_path
from lmcache_mp.rundir import RunDir
from lmcache_mp.units import Size, format_bytes

PROMPTS = 4
"""Asked for in turn; L1 holds half of them, so each has to come from L2."""


def figures(effort: Effort) -> Iterator[Figure]:
    """Cascades from commit to the last rename, promotions from a retrieve to its answer."""
    for chunk_bytes in effort.chunk_sizes:
        yield from _of_size(effort, chunk_bytes)


def _of_size(effort: Effort, chunk_bytes: int) -> Iterator[Figure]:
    chunks = max(effort.threads, effort.batch_bytes // chunk_bytes)
    l1_size = Size((PROMPTS // 2 * chunks + PROMPTS) * chunk_bytes)
    namespace = Namespace(model="path", dtype="uint8", shard_bytes=chunk_bytes)
    what = f"whole path with O_DIRECT, {format_bytes(chunk_bytes)} chunks"
    with (
        scratch(effort) as ours,
        scratch(effort) as plain,
        batch(chunk_bytes, effort.batch_bytes, effort.threads) as objects,
        node(l1_size, {"type": "fs", "path": str(ours), "direct": True}) as run_dir,
        connected(run_dir, namespace) as cache,
    ):
        way = Way(run_dir, cache, objects, ours, plain)
        floor_s, subject_s = take_turns(
            way.write, way.cascade, rounds=effort.rounds, calls=1, prepare=way.next_fresh
        )
        yield of_bytes(f"fs store, {what}", STORE_BAR, objects.size, floor_s, subject_s)
        way.fill()
        floor_s, subject_s = take_turns(
            way.read, way.promote, rounds=effort.rounds, calls=1, prepare=way.next_kept
        )
        yield of_bytes(f"fs load, {what}", LOAD_BAR, objects.size, floor_s, subject_s)


class Way:
    """One prompt at a time, both ways. Between its turns the floor's bytes lie in `objects`."""

    def __init__(
        self, run_dir: RunDir, cache: CacheClient, objects: Batch, ours: Path, plain: Path
    ) -> None:
        self._run_dir = run_dir
        self._cache = cache
        self._objects = objects
        self._ours = ours
        self._plain = plain
        self._content = ChunkBytes(objects.chunk_bytes)
        self._fresh = itertools.count(1_000)
        self._turn = itertools.cycle(range(PROMPTS))
        self._keys = self._plain_keys = self._prompt(0)
        self._written: StoreBatch | None = None
        self._cascaded = 0

    def next_fresh(self) -> None:
        """Another prompt that nobody has; what was stored before is removed."""
        self._cache.delete(self._keys)
        wait_until(lambda: not any(map(self._is_on_disk, self._keys)), "the disk is empty")
        for key in self._objects.keys:
            (self._plain / object_path(key)).unlink(missing_ok=True)
        self._write(next(self._fresh))

    def next_kept(self) -> None:
        """Another prompt that L2 has and L1 has not, and one that the floor reads."""
        number = next(self._turn)
        self._keys = self._prompt(number)
        self._plain_keys = self._prompt((number + PROMPTS // 2) % PROMPTS)
        if self._cache.lookup(self._keys).l1_chunks:
            raise RuntimeError("L1 has some of a prompt that was to come from L2")

    def fill(self) -> None:
        """Store the prompts that are kept."""
        for number in range(PROMPTS):
            self._write(number)
            self.cascade()

    def write(self) -> None:
        """The floor of `cascade`."""
        self._objects.moved(written_aside(self._plain, os.O_DIRECT))()

    def cascade(self) -> None:
        """Commit the prompt that is written, and wait until all of it is on disk."""
        assert self._written is not None
        self._cascaded += self._written.commit()

        def is_done() -> bool:
            return adapter_of(self._run_dir).counters.cascaded_chunks >= self._cascaded

        wait_until(is_done, "all chunks are on disk")

    def read(self) -> None:
        """The floor of `promote`."""
        read = read_into(self._ours, os.O_DIRECT)
        for _ in self._objects.pool.map(read, self._plain_keys, self._objects.views):
            pass

    def promote(self) -> None:
        """Retrieve a prompt that has to come from L2, and look at one of its chunks."""
        with self._cache.retrieve(self._keys) as hit:
            if len(hit) != len(self._keys):
                raise RuntimeError(f"{len(hit)} of {len(self._keys)} chunks came from L2")
            index, view = next(hit.slots())
            self._content.read(view)
        if self._content.wrong_bytes(self._keys[index]):
            raise RuntimeError("a chunk from L2 has other bytes than were stored")

    def _write(self, number: int) -> None:
        self._keys = self._prompt(number)
        self._written = self._cache.begin_store(self._keys)
        for index, view in self._written.slots():
            self._content.write(self._keys[index], view)

    def _prompt(self, number: int) -> ChunkKeys:
        return prompt(number, len(self._objects.keys))

    def _is_on_disk(self, key: bytes) -> bool:
        return (self._ours / object_path(key)).exists()
