"""The `s3` adapter beside obstore used directly, both on one moto server over loopback."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator

import obstore
from obstore.store import S3Store

from benchmarks.harness import Figure
from benchmarks.l2.batch import batch, loaded_by, stored_by
from benchmarks.l2.effort import Effort
from lmcache_mp.l2 import s3
from lmcache_mp.units import format_bytes
from tests.l2.stores import BUCKET, S3_ENVIRONMENT, s3_server

BAR = ">= 0.9"


def figures(effort: Effort) -> Iterator[Figure]:
    """Store and load; moto is a Python program, and most of the time is its own."""
    with s3_server() as server, _environment():
        for chunk_bytes in effort.remote_chunk_sizes:
            yield from _of_size(effort, chunk_bytes, server.endpoint)


def _of_size(effort: Effort, chunk_bytes: int, endpoint: str) -> Iterator[Figure]:
    what = f"{format_bytes(chunk_bytes)} chunks, {effort.threads} threads"
    config = s3.Config(url=f"s3://{BUCKET}/ours", endpoint=endpoint)
    plain = S3Store(BUCKET, prefix="plain", endpoint=endpoint, client_options={"allow_http": True})
    with (
        batch(chunk_bytes, effort.remote_batch_bytes, effort.threads) as objects,
        contextlib.closing(s3.Adapter(config)) as adapter,
    ):

        def put(key: bytes, view: memoryview) -> None:
            obstore.put(plain, key.hex(), view, use_multipart=False)

        def get(key: bytes, view: memoryview) -> None:
            view[:] = memoryview(obstore.get(plain, key.hex()).bytes())

        ours, loaded, rounds = stored_by(adapter), loaded_by(adapter), effort.rounds
        yield objects.figure(f"s3 store, {what}", BAR, put, ours, rounds=rounds)
        yield objects.load_figure(f"s3 load, {what}", BAR, get, loaded, rounds=rounds)
        adapter.delete(objects.keys)
        obstore.delete(plain, [key.hex() for key in objects.keys])


@contextlib.contextmanager
def _environment() -> Generator[None, None, None]:
    """With the credentials that moto takes, which is any."""
    before = dict(os.environ)
    os.environ.update(S3_ENVIRONMENT)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
