"""The `fs` adapter beside the plain calls: open, write aside, rename; open, read."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

from benchmarks.harness import Figure
from benchmarks.l2.batch import LOAD_BAR, STORE_BAR, Move, batch, loaded_by, stored_by
from benchmarks.l2.effort import Effort
from lmcache_mp.l2 import fs
from lmcache_mp.l2.fs.names import FAN_OUT, object_path
from lmcache_mp.units import format_bytes

CACHED_BAR = ">= 0.6"


def direct(effort: Effort) -> Iterator[Figure]:
    """Past the page cache, both ways."""
    for chunk_bytes in effort.chunk_sizes:
        yield from _figures(effort, chunk_bytes, direct=True)


def cached(effort: Effort) -> Iterator[Figure]:
    """Loads of what the page cache holds."""
    for chunk_bytes in effort.chunk_sizes:
        yield from _figures(effort, chunk_bytes, direct=False)


def _figures(effort: Effort, chunk_bytes: int, *, direct: bool) -> Iterator[Figure]:
    flags = os.O_DIRECT if direct else 0
    way = "O_DIRECT" if direct else "page cache"
    what = f"{way}, {format_bytes(chunk_bytes)} chunks, {effort.threads} threads"
    with (
        scratch(effort) as ours,
        scratch(effort) as plain,
        batch(chunk_bytes, effort.batch_bytes, effort.threads) as objects,
        contextlib.closing(fs.Adapter(fs.Config(path=str(ours), direct=direct))) as adapter,
    ):

        def empty() -> None:
            adapter.delete(objects.keys)
            for key in objects.keys:
                (plain / object_path(key)).unlink(missing_ok=True)

        store = objects.figure(
            f"fs store, {what}",
            STORE_BAR,
            written_aside(plain, flags),
            stored_by(adapter),
            rounds=effort.rounds,
            prepare=empty,
        )
        if direct:
            yield store
        yield objects.load_figure(
            f"fs load, {what}",
            LOAD_BAR if direct else CACHED_BAR,
            read_into(ours, flags),
            loaded_by(adapter),
            rounds=effort.rounds,
        )


def written_aside(directory: Path, flags: int) -> Move:
    """The floor of a store: one buffer, one file, one rename."""

    def write(key: bytes, view: memoryview) -> None:
        path = f"{directory}/{object_path(key)}"
        descriptor = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600)
        try:
            written = os.pwrite(descriptor, view, 0)
        finally:
            os.close(descriptor)
        os.rename(f"{path}.new", path)
        if written != len(view):
            raise RuntimeError(f"{path}: wrote {written} of {len(view)} bytes")

    return write


def read_into(directory: Path, flags: int) -> Move:
    """The floor of a load, of the very files that the adapter reads."""

    def read(key: bytes, view: memoryview) -> None:
        path = f"{directory}/{object_path(key)}"
        descriptor = os.open(path, os.O_RDONLY | flags)
        try:
            done = os.preadv(descriptor, [view], 0)
        finally:
            os.close(descriptor)
        if done != len(view):
            raise RuntimeError(f"{path}: read {done} of {len(view)} bytes")

    return read


@contextlib.contextmanager
def scratch(effort: Effort) -> Generator[Path, None, None]:
    """A directory with those that objects are fanned out to; all of it is removed."""
    path = Path(tempfile.mkdtemp(prefix="bench-l2-", dir=effort.directory))
    try:
        for name in FAN_OUT:
            (path / name).mkdir(mode=0o700)
        yield path
    finally:
        shutil.rmtree(path)
