"""Some objects moved by some threads, in turn with the same bytes moved without an adapter."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import statistics
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import xxhash

from benchmarks.harness import Figure, take_turns
from benchmarks.latency import Latency
from lmcache_mp.l2 import ENVELOPE_BYTES, AnyAdapter
from lmcache_mp.madvise import MADV_POPULATE_WRITE, address_of, madvise
from lmcache_mp.messages import KEY_BYTES

Move = Callable[[bytes, memoryview], object]
"""Moves one object: its key, and its bytes in memory, envelope and chunk."""

STORE_BAR = LOAD_BAR = ">= 0.8"


@dataclass(frozen=True, slots=True)
class Batch:
    """Objects of one size; floor and subject find and leave their bytes in the same memory."""

    chunk_bytes: int
    keys: list[bytes]
    views: list[memoryview]
    pool: ThreadPoolExecutor

    @property
    def size(self) -> int:
        """Bytes of all objects."""
        return sum(map(len, self.views))

    def moved(self, move: Move) -> Callable[[], None]:
        """A call that moves all objects once."""

        def call() -> None:
            for _ in self.pool.map(move, self.keys, self.views):
                pass

        return call

    def figure(
        self,
        name: str,
        bar: str,
        floor: Move,
        subject: Move,
        *,
        rounds: int,
        prepare: Callable[[], None] = lambda: None,
    ) -> Figure:
        """Bytes a second of both."""
        floor_s, subject_s = take_turns(
            self.moved(floor), self.moved(subject), rounds=rounds, calls=1, prepare=prepare
        )
        return of_bytes(name, bar, self.size, floor_s, subject_s)

    def load_figure(
        self, name: str, bar: str, floor: Move, subject: Move, *, rounds: int
    ) -> Figure:
        """The same of loads; raises unless all that was stored came back."""
        stored = self.digest()
        figure = self.figure(name, bar, floor, subject, rounds=rounds)
        for move in (floor, subject):
            for view in self.views:
                view[:] = bytes(len(view))
            self.moved(move)()
            if self.digest() != stored:
                raise RuntimeError(f"{name}: what was loaded is not what was stored")
        return figure

    def digest(self) -> int:
        """Of all bytes in memory."""
        hasher = xxhash.xxh3_64()
        for view in self.views:
            hasher.update(view)
        return hasher.intdigest()


@contextlib.contextmanager
def batch(chunk_bytes: int, batch_bytes: int, threads: int) -> Generator[Batch, None, None]:
    """Objects with some bytes, and threads to move them."""
    count = max(threads, batch_bytes // chunk_bytes)
    each = ENVELOPE_BYTES + chunk_bytes
    made = random.Random(chunk_bytes)
    with (
        mmap.mmap(-1, count * each, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory,
        memoryview(memory) as whole,
        ThreadPoolExecutor(threads) as pool,
        contextlib.ExitStack() as views,
    ):
        madvise(address_of(memory), len(whole), MADV_POPULATE_WRITE)
        content = os.urandom(chunk_bytes)
        objects = [
            views.enter_context(whole[at : at + each]) for at in range(0, count * each, each)
        ]
        for view in objects:
            view[ENVELOPE_BYTES:] = content
            view[:KEY_BYTES] = made.randbytes(KEY_BYTES)
        yield Batch(chunk_bytes, [made.randbytes(KEY_BYTES) for _ in objects], objects, pool)


def stored_by(adapter: AnyAdapter) -> Move:
    """How a worker stores: the envelope's page, then the chunk."""

    def store(key: bytes, view: memoryview) -> None:
        with view[:ENVELOPE_BYTES] as page, view[ENVELOPE_BYTES:] as chunk:
            adapter.store(key, (page, chunk))

    return store


def loaded_by(adapter: AnyAdapter) -> Move:
    """How a worker loads."""

    def load(key: bytes, view: memoryview) -> None:
        with view[:ENVELOPE_BYTES] as page, view[ENVELOPE_BYTES:] as chunk:
            if adapter.load(key, (page, chunk)) != len(view):
                raise RuntimeError(f"{key.hex()} is not there, or not whole")

    return load


def of_bytes(
    name: str, bar: str, size: int, floor_s: list[float], subject_s: list[float]
) -> Figure:
    """Bytes a second, of turns that moved so many bytes each."""
    return Figure(
        name=name,
        unit="MB/s",
        floor=round(size / 1e6 / statistics.median(floor_s), 1),
        subject=round(size / 1e6 / statistics.median(subject_s), 1),
        bar=bar,
        floor_latency=Latency.of(floor_s),
        subject_latency=Latency.of(subject_s),
    )
