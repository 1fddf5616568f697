"""The `redis` adapter beside redis-py with hiredis, as it comes, on a server over loopback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import redis as library

from benchmarks.harness import Figure
from benchmarks.l2.batch import LOAD_BAR, STORE_BAR, batch, loaded_by, stored_by
from benchmarks.l2.effort import Effort
from lmcache_mp.l2 import redis
from lmcache_mp.units import format_bytes
from tests.l2.stores import RedisServer, free_port, redis_server


def figures(effort: Effort) -> Iterator[Figure]:
    """Store and load; each thread has one connection."""
    with redis_server(port=free_port()) as server:
        for chunk_bytes in effort.remote_chunk_sizes:
            yield from _of_size(effort, chunk_bytes, server)


def _of_size(effort: Effort, chunk_bytes: int, server: RedisServer) -> Iterator[Figure]:
    what = f"{format_bytes(chunk_bytes)} chunks, {effort.threads} connections"
    with (
        batch(chunk_bytes, effort.remote_batch_bytes, effort.threads) as objects,
        contextlib.closing(
            redis.Adapter(redis.Config(url=server.tcp_url, prefix="ours:"))
        ) as adapter,
        contextlib.closing(_client(server.port)) as client,
    ):
        # What it is given is bytes already: it copies anything else once more.
        values = {key: bytes(v) for key, v in zip(objects.keys, objects.views, strict=True)}

        def put(key: bytes, view: memoryview) -> None:
            client.set(key, values[key])

        def get(key: bytes, view: memoryview) -> None:
            value = client.get(key)
            if not isinstance(value, bytes) or len(value) != len(view):
                raise RuntimeError(f"{key.hex()} is not there, or not whole")

        def get_into(key: bytes, view: memoryview) -> None:
            view[:] = client.get(key)

        ours, rounds = stored_by(adapter), effort.rounds
        yield objects.figure(f"redis store, {what}", STORE_BAR, put, ours, rounds=rounds)
        name, loaded = f"redis load, {what}", loaded_by(adapter)
        yield objects.load_figure(f"{name}, into memory", LOAD_BAR, get_into, loaded, rounds=rounds)
        yield objects.figure(
            f"{name}, beside bytes left there", LOAD_BAR, get, loaded, rounds=rounds
        )
        adapter.delete(objects.keys)
        client.flushdb()


def _client(port: int) -> Any:
    """The library's own, whose annotations cover both its clients, with and without await."""
    return library.Redis(host="127.0.0.1", port=port, protocol=2)
