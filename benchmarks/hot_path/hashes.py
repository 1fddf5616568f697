"""From token ids to keys, beside the bare hashes that they are made of."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from hashlib import sha256

from benchmarks.harness import Figure, of_latencies, on_cpus, take_turns
from benchmarks.hot_path.effort import Effort
from benchmarks.hot_path.prompts import CHUNKS, NAMESPACE
from lmcache_mp.client import chunk_keys

TOKENS = CHUNKS * NAMESPACE.chunk_tokens


def figures(effort: Effort) -> Iterator[Figure]:
    """All keys of a prompt whose ids lie in a buffer of uint32."""
    tokens = array("I", range(TOKENS))
    buffer = memoryview(tokens).cast("B")
    step = NAMESPACE.chunk_tokens * tokens.itemsize

    def bare() -> None:
        key = b""
        for start in range(0, len(buffer), step):
            digest = sha256(key)
            digest.update(buffer[start : start + step])
            key = digest.digest()

    def ours() -> None:
        assert len(chunk_keys(NAMESPACE, tokens)) == CHUNKS

    with on_cpus(sorted(os.sched_getaffinity(0))[:1]):
        floor_s, subject_s = take_turns(bare, ours, rounds=effort.rounds, calls=effort.calls)
    yield of_latencies(f"keys of {TOKENS:,} tokens, beside sha256", "<= 2", floor_s, subject_s)
