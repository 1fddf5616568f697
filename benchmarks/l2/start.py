"""Starting on a directory that is full of objects: when does it serve, when is its list complete?

Until the list is complete, prompts are asked for: they may miss, and must not be wrong.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.chunk_bytes import ChunkBytes
from benchmarks.harness import Figure
from benchmarks.hot_path.prompts import NAMESPACE, prompt
from benchmarks.l2.effort import Effort
from benchmarks.l2.fs import scratch
from benchmarks.l2.node import adapter_of, wait_until
from benchmarks.latency import Latency
from benchmarks.server import starting_server, wait_until_answers
from lmcache_mp.client import CacheClient
from lmcache_mp.l2 import ENVELOPE_BYTES, fs
from lmcache_mp.l2.fs.names import FAN_OUT
from lmcache_mp.messages import SLOT_UNIT_BYTES
from lmcache_mp.tiering.envelope import seal
from lmcache_mp.units import Size

CHUNKS = 100
SAMPLE = 16
"""Prompts that are asked for while the list is made."""
L1_SIZE = Size("64MiB")

SERVING_BAR, CATALOGUE_BAR = "<= 1.5", "<= 30 s"


def figures(effort: Effort) -> Iterator[Figure]:
    """Time to serving beside an empty directory, time to the whole list beside a plain scan."""
    prompts = effort.objects // CHUNKS
    objects = prompts * CHUNKS
    with scratch(effort) as full, scratch(effort) as empty:
        _fill(full, prompts)
        full_s: list[float] = []
        empty_s: list[float] = []
        listed_s: list[float] = []
        wrong = 0
        for _ in range(effort.starts):
            empty_s.append(_start(empty, 0)[0])
            serving_s, list_s, wrong_chunks = _start(full, prompts)
            full_s.append(serving_s)
            listed_s.append(list_s)
            wrong += wrong_chunks
        yield _of_times(
            f"start until the bus answers, {objects:,} objects in fs, beside none",
            SERVING_BAR,
            empty_s,
            full_s,
        )
        scans_s = [_scan(full) for _ in range(effort.starts)]
        yield _of_times(
            f"start until {objects:,} objects are listed, beside scandir and stat",
            CATALOGUE_BAR,
            scans_s,
            listed_s,
        )
        yield Figure(
            name="wrong chunks of those asked for while the list is made",
            unit="chunks",
            floor=effort.starts * min(SAMPLE, prompts) * CHUNKS,
            subject=wrong,
            bar="<= 0 chunks",
        )


def _start(directory: Path, prompts: int) -> tuple[float, float, int]:
    """Seconds until the bus answers and until all is listed, and how many chunks were wrong."""
    adapter = {"type": "fs", "path": str(directory)}
    began_s = time.perf_counter()
    with starting_server(L1_SIZE, l2=[msgspec.json.encode(adapter).decode()]) as (run_dir, process):
        wait_until_answers(run_dir, process)
        serving_s = time.perf_counter() - began_s
        wait_until(lambda: adapter_of(run_dir).state == "open", "its adapter is open")
        wrong = _ask(run_dir.bus_address, prompts) if prompts else 0

        def is_listed() -> bool:
            return bool(adapter_of(run_dir).figures.get("scanned"))

        wait_until(is_listed, "all objects are listed")
        listed_s = time.perf_counter() - began_s
        found = adapter_of(run_dir).figures["objects"]
        if found != prompts * CHUNKS:
            raise RuntimeError(f"{found} objects are listed, and there are {prompts * CHUNKS}")
    return serving_s, listed_s, wrong


def _ask(address: str, prompts: int) -> int:
    """How many chunks of some prompts are other than they were stored."""
    content = ChunkBytes(NAMESPACE.chunk_bytes)
    asked = hits = wrong = 0
    with CacheClient.connect(address, NAMESPACE, fail_open=False, timeout_s=10) as cache:
        for number in range(0, prompts, max(1, prompts // SAMPLE)):
            keys = prompt(number, CHUNKS)
            asked += len(keys)
            with cache.retrieve(keys) as hit:
                hits += len(hit)
                for index, view in hit.slots():
                    content.read(view)
                    wrong += content.wrong_bytes(keys[index]) > 0
    print(f"asked while listing: {hits} of {asked} chunks were hits", file=sys.stderr)
    return wrong


def _fill(directory: Path, prompts: int) -> None:
    """Objects as a server would have stored them."""
    content = ChunkBytes(NAMESPACE.chunk_bytes)
    page, slot = (memoryview(bytearray(size)) for size in (ENVELOPE_BYTES, SLOT_UNIT_BYTES))
    with contextlib.closing(fs.Adapter(fs.Config(path=str(directory)))) as adapter:
        for number in range(prompts):
            for key in prompt(number, CHUNKS):
                content.write(key, slot[: NAMESPACE.chunk_bytes])
                seal(page, key, NAMESPACE.digest, slot[: NAMESPACE.chunk_bytes])
                adapter.store(key, (page, slot))


def _scan(directory: Path) -> float:
    """Seconds to look at every object once."""
    began_s = time.perf_counter()
    for name in FAN_OUT:
        with os.scandir(directory / name) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
    return time.perf_counter() - began_s


def _of_times(name: str, bar: str, floor_s: list[float], subject_s: list[float]) -> Figure:
    floor, subject = Latency.of(floor_s), Latency.of(subject_s)
    assert floor.p50_ms is not None
    assert subject.p50_ms is not None
    return Figure(
        name=name,
        unit="s, p50",
        floor=round(floor.p50_ms / 1000, 4),
        subject=round(subject.p50_ms / 1000, 4),
        bar=bar,
        floor_latency=floor,
        subject_latency=subject,
    )
