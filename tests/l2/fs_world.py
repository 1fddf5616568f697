"""Directories, filesystems and page-aligned objects for the tests of `fs`."""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from lmcache_mp.l2 import AdapterError
from lmcache_mp.l2.fs import Adapter, Config
from lmcache_mp.units import Size
from tests.waiting import wait_until

PAGE = mmap.PAGESIZE


class Chunk:
    """An object in two page-aligned parts, as the worker has them; its bytes follow from its key.

    `key` is random unless given.
    """

    def __init__(self, key: bytes | None = None, pages: int = 4) -> None:
        self.key = key if key is not None else secrets.token_bytes(32)
        self.size = pages * PAGE
        self.bytes = (self.key * (self.size // len(self.key)))[: self.size]
        self.parts = aligned(self.size)
        self.parts[0][:] = self.bytes[:PAGE]
        self.parts[1][:] = self.bytes[PAGE:]

    def is_in(self, adapter: Adapter) -> bool:
        """Whether it can be loaded; then it must be right."""
        parts = aligned(self.size)
        length = adapter.load(self.key, parts)
        if length is None:
            return False
        assert length == self.size
        assert b"".join(parts) == self.bytes
        return True


def aligned(size: int) -> list[memoryview]:
    """Zeros of that size in two page-aligned parts: the first page, and the rest."""
    memory = memoryview(mmap.mmap(-1, size))
    return [memory[:PAGE], memory[PAGE:]]


@contextlib.contextmanager
def opened(
    path: Path, *, direct: bool = False, capacity: int | None = None
) -> Generator[Adapter, None, None]:
    """An adapter of that directory, closed at the end."""
    size = None if capacity is None else Size(capacity)
    adapter = Adapter(Config(path=str(path), direct=direct, capacity=size))
    try:
        yield adapter
    finally:
        adapter.close()


def refused(path: Path, *, match: str, direct: bool = False) -> None:
    """That directory must not be taken, with such a sentence."""
    with pytest.raises(AdapterError, match=match) as caught, opened(path, direct=direct):
        pass
    assert caught.value.lasting


def wait_scanned(adapter: Adapter) -> None:
    wait_until(lambda: adapter.figures()["scanned"] == 1)


def object_file(directory: Path, key: bytes) -> Path:
    return directory / key.hex()[:2] / key.hex()


def object_files(directory: Path) -> list[Path]:
    return [path for path in directory.glob("??/*") if not path.name.startswith(".")]


def unfinished_files(directory: Path) -> list[Path]:
    return list(directory.glob("??/.*"))


@contextlib.contextmanager
def mounted(
    kind: str, where: Path, options: str, source: str = "none"
) -> Generator[Path, None, None]:
    """A filesystem of its own below `where`; skips the test where that is not allowed."""
    place = where / kind
    place.mkdir()
    command = ["mount", "-t", kind, "-o", options, source, str(place)]
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    outcome = subprocess.run(command, capture_output=True, text=True)
    if outcome.returncode != 0:
        pytest.skip(f"cannot mount a {kind} here: {outcome.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)
