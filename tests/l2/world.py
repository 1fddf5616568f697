"""Engines with adapters, each in its worker process."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lmcache_mp.client import CacheClient
from lmcache_mp.keys import ChunkKeys
from lmcache_mp.namespace import Namespace
from lmcache_mp.tiering.spec import AdapterSpec
from lmcache_mp.tiering.status import L2Status
from tests.waiting import wait_until
from tests.world import NAMESPACE, EngineProcess

CHUNKS = 8


class Node:
    """An engine and the workers of its adapters."""

    def __init__(self, engine: EngineProcess) -> None:
        self.engine = engine
        self.workers: dict[str, subprocess.Popen[bytes]] = {}

    def start_worker(self, name: str, *, opens: bool = True) -> subprocess.Popen[bytes]:
        """Start an adapter's worker, and wait until it has opened it."""
        self.workers[name] = subprocess.Popen(
            [
                *(sys.executable, "-m", "lmcache_mp.worker"),
                *("--run-dir", str(self.engine.run_dir.path), "--adapter", name),
            ]
        )
        if opens:
            wait_until(lambda: self.l2(name).state == "open")
        return self.workers[name]

    def end_worker(self, name: str, number: signal.Signals = signal.SIGTERM) -> int:
        """Send its worker a signal that ends it; its exit code."""
        worker = self.workers.pop(name)
        worker.send_signal(number)
        return worker.wait(timeout=20)

    def l2(self, name: str) -> L2Status:
        """What the engine says of an adapter."""
        return next(adapter for adapter in self.engine.status().l2 if adapter.name == name)

    def wait_cascaded(self, chunks: int, name: str = "memory") -> None:
        """Wait until an adapter has so many chunks, stored now or there before, and no more to do.

        One may be offered twice: as it is committed, and with what was there before.
        """

        def done() -> bool:
            report = self.engine.status()
            adapter = next(adapter for adapter in report.l2 if adapter.name == name)
            leased = sum(c.leased_chunks for c in report.clients if c.who == f"l2 {name}")
            enough = adapter.counters.cascaded_chunks >= chunks
            return enough and not adapter.queued_bytes and not leased

        wait_until(done)


@contextmanager
def node(
    start_engine: Callable[..., EngineProcess], *adapters: dict[str, Any], **settings: Any
) -> Iterator[Node]:
    """A running engine with these adapters, all of them open."""
    specs = tuple(AdapterSpec(adapter) for adapter in adapters)
    running = Node(start_engine(l2=specs, **settings))
    try:
        for status in running.engine.status().l2:
            running.start_worker(status.name)
        yield running
    finally:
        for worker in running.workers.values():
            worker.send_signal(signal.SIGTERM)
        for worker in running.workers.values():
            try:
                worker.wait(timeout=10)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


def prompt(client: CacheClient, number: int, chunks: int = CHUNKS, **identity: Any) -> ChunkKeys:
    """The keys of a prompt that no other number has."""
    tokens = client.namespace.chunk_tokens
    first = number * 1_000_000
    return client.chunk_keys(range(first, first + chunks * tokens), **identity)


def chunk(keys: ChunkKeys, index: int, size: int) -> bytes:
    """What belongs into a chunk."""
    return (keys[index] * (size // 32 + 1))[:size]


def store(client: CacheClient, keys: ChunkKeys) -> int:
    """Store what is missing of a prompt; how many chunks were."""
    with client.store(keys) as batch:
        for index, view in batch.slots():
            view[:] = chunk(keys, index, len(view))
    return batch.committed_chunks


def retrieve(client: CacheClient, keys: ChunkKeys, **options: Any) -> int:
    """Retrieve a prompt and compare every byte; how many chunks there were."""
    with client.retrieve(keys, **options) as hit:
        for index, view in hit.slots():
            assert view == chunk(keys, index, len(view)), f"chunk {index} has other bytes"
        return len(hit)


def namespace(**fields: Any) -> Namespace:
    """The usual one with other fields."""
    return Namespace(
        **{
            **{name: getattr(NAMESPACE, name) for name in NAMESPACE.__struct_fields__},
            **fields,
        }
    )
