"""`lmcache_mp.client`, as an inference engine's adapter uses it."""

from __future__ import annotations

from array import array
from typing import assert_type

from lmcache_mp.client import (
    CacheClient,
    ChunkKeys,
    LookupReply,
    Namespace,
    Pin,
    RetrieveHit,
    StoreBatch,
    chunk_keys,
    server_address,
)


def keys(namespace: Namespace, cache: CacheClient) -> ChunkKeys:
    assert_type(cache.chunk_keys([1, 2, 3]), ChunkKeys)
    assert_type(cache.chunk_keys(range(9), salt="s", lora="l", extra=[(3, b"image")]), ChunkKeys)
    assert_type(cache.chunk_keys(array("I", [1])), ChunkKeys)
    assert_type(cache.chunk_keys(b"\1\0\0\0"), ChunkKeys)
    found = chunk_keys(namespace, memoryview(b""))
    assert_type(found[0], bytes)
    assert_type(list(found), list[bytes])
    assert_type(len(found), int)
    return found


def verbs(namespace: Namespace) -> None:
    with CacheClient.connect(server_address("default"), namespace, timeout_s=1) as cache:
        assert_type(cache, CacheClient)
        prompt = cache.chunk_keys([1])
        found = cache.lookup(prompt, hold_s=2)
        assert_type(found, LookupReply)
        assert_type(found.hit_chunks, int)
        with cache.store(prompt) as batch:
            assert_type(batch, StoreBatch)
            for index, view in batch.slots():
                assert_type(index, int)
                assert_type(view, memoryview)
        assert_type(batch.committed_chunks, int)
        with cache.retrieve(prompt) as hit:
            assert_type(hit, RetrieveHit)
            assert_type(hit.chunks, int)
            assert_type([view for _, view in hit.slots()], list[memoryview])
        with cache.pin(prompt) as pin:
            assert_type(pin, Pin)
        assert_type(cache.begin_store(prompt).commit(), int)
        assert_type(cache.begin_retrieve(prompt).release(), None)
        assert_type(cache.touch(prompt), int)
        assert_type(cache.delete(prompt), int)
        assert_type(cache.clear(), int)
        assert_type(cache.counters.failures, dict[str, int])


def refused(cache: CacheClient) -> None:
    Namespace(model="m", dtype="u8")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Namespace("m", dtype="u8", shard_bytes=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    cache.chunk_keys("text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    cache.lookup([b"key"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    cache.lookup(cache.chunk_keys([1]), 2.0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    cache.retrieve(cache.chunk_keys([1])).commit()  # type: ignore[attr-defined]  # pyright: ignore
