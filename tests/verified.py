"""Stores whose bytes are checked when they come back."""

from __future__ import annotations

from lmcache_mp.client import CacheClient, ChunkKeys
from tests.world import NAMESPACE


def keys_of(cache: CacheClient, chunks: int, prompt: int = 0) -> ChunkKeys:
    return cache.chunk_keys([prompt, *range(1, chunks * NAMESPACE.chunk_tokens)])


def store(cache: CacheClient, chunks: int, prompt: int = 0) -> tuple[int, int]:
    """`(stored, found no room)` chunks."""
    batch = cache.begin_store(keys_of(cache, chunks, prompt))
    with batch:
        for index, view in batch.slots():
            view[:] = bytes([index % 251 + prompt]) * len(view)
        stored = len(batch)
    return stored, batch.no_room_chunks


def retrieve(cache: CacheClient, chunks: int, prompt: int = 0) -> int:
    """How many chunks came back; each must be what was stored."""
    with cache.retrieve(keys_of(cache, chunks, prompt)) as hit:
        for index, view in hit.slots():
            assert bytes(view) == bytes([index % 251 + prompt]) * len(view)
        return len(hit)
