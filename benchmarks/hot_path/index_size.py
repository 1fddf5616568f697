"""Does a lookup cost more in a large index? Prompts are drawn uniformly: caches do not help.

Two servers stand side by side, one with few chunks and one with many, and are asked in turn.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Figure, of_latencies, on_cpus, pin, take_turns
from benchmarks.hot_path.effort import Effort
from benchmarks.hot_path.place import connected, engine_pid, second_cpu
from benchmarks.hot_path.prompts import CHUNKS, NAMESPACE, prompt
from benchmarks.hot_path.speaker import speaking
from benchmarks.server import own_server
from lmcache_mp.client import CacheClient, ChunkKeys
from lmcache_mp.l1.room import room
from lmcache_mp.rundir import RunDir
from lmcache_mp.units import Size

BAR = "<= 1.8"
AIR = 1.25
"""Memory taken, in parts of the L1 that the chunks need: the engine's own records are 10 %."""


def figures(effort: Effort) -> Iterator[Figure]:
    """The whole call, many chunks beside few."""
    few, many = _prompts(effort.small_index_chunks), _prompts(_that_fit(effort.index_chunks))
    cpus = sorted(os.sched_getaffinity(0))
    with own_server(_l1_for(few)) as small_dir, own_server(_l1_for(many)) as large_dir:
        for run_dir in (small_dir, large_dir):
            pin(engine_pid(run_dir), second_cpu(cpus))
        with (
            on_cpus(cpus[:1]),
            connected(small_dir, NAMESPACE) as small,
            connected(large_dir, NAMESPACE) as large,
        ):
            few = _filled(small_dir, few, effort.fill_s)
            many = _filled(large_dir, many, effort.fill_s)
            floor, subject = Draws(small, few), Draws(large, many)

            def draw() -> None:
                floor.draw(effort.calls)
                subject.draw(effort.calls)

            floor_s, subject_s = take_turns(
                floor.lookup, subject.lookup, rounds=effort.rounds, calls=effort.calls, prepare=draw
            )
    name = f"lookup of {CHUNKS} chunks among {many * CHUNKS:,} beside {few * CHUNKS:,}"
    yield of_latencies(name, BAR, floor_s, subject_s)


class Draws:
    """Lookups of prompts drawn from the first so many."""

    def __init__(self, cache: CacheClient, prompts: int) -> None:
        self._cache = cache
        self._prompts = prompts
        self._random = random.Random(prompts)
        self._drawn: list[ChunkKeys] = []

    def draw(self, count: int) -> None:
        """Choose the next ones."""
        self._drawn = [prompt(self._random.randrange(self._prompts)) for _ in range(count)]

    def lookup(self) -> None:
        """One call; everything is there."""
        assert self._cache.lookup(self._drawn.pop()).l1_chunks == CHUNKS


def _filled(run_dir: RunDir, prompts: int, seconds: float) -> int:
    """Store so many prompts, or as many as the time allows; returns how many."""
    until_s = time.monotonic() + seconds
    with speaking(run_dir, NAMESPACE) as speaker:
        for number in range(prompts):
            assert speaker.store(prompt(number).buffer) == CHUNKS
            if time.monotonic() > until_s:
                print(f"time is short: {(number + 1) * CHUNKS:,} chunks only", file=sys.stderr)
                return number + 1
    return prompts


def _that_fit(chunks: int) -> int:
    available = int(room(Path("/dev/shm")).available_bytes / AIR / NAMESPACE.chunk_bytes)
    if available < chunks:
        print(f"memory is short: {available:,} chunks in the index only", file=sys.stderr)
    return min(chunks, available)


def _prompts(chunks: int) -> int:
    return -(-chunks // CHUNKS)


def _l1_for(prompts: int) -> Size:
    """A little more than they need: L1 is divided into pages."""
    return Size((prompts * CHUNKS * NAMESPACE.chunk_bytes * 33 // 32 >> 20) + 4 << 20)
