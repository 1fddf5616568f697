"""Prompts as the server sees them: keys, of prompts that have never been or always been there."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from lmcache_mp.client import ChunkKeys, Namespace
from lmcache_mp.messages import KEY_BYTES

CHUNKS = 128
"""Of a prompt of 32k tokens."""

NAMESPACE = Namespace(model="bench", dtype="uint8", shard_bytes=4096)
"""Small chunks: what is measured with it copies nothing."""


def prompt(number: int, chunks: int = CHUNKS) -> ChunkKeys:
    """The keys of prompt `number` of that length: the same in every process, nobody else's.

    Made anew for each use, as an engine does, so that the caller's own memory is warm.
    """
    return ChunkKeys(random.Random(f"{number} {chunks}").randbytes(chunks * KEY_BYTES))


class FreshPrompts:
    """Prompts that nobody has stored, made before they are needed."""

    def __init__(self, first: int = 1 << 40) -> None:
        self._numbers = itertools.count(first)
        self._made: list[ChunkKeys] = []
        self._used: list[ChunkKeys] = []

    def make(self, count: int, chunks: int = CHUNKS, head: bytes = b"") -> None:
        """Have so many ready; with a `head`, prompts that continue it by so many chunks."""
        self._made = [
            ChunkKeys(head + prompt(next(self._numbers), chunks).buffer) for _ in range(count)
        ]

    def take(self) -> ChunkKeys:
        """The next one."""
        keys = self._made.pop()
        self._used.append(keys)
        return keys

    def used(self) -> Iterator[ChunkKeys]:
        """Those taken since the last time that this was asked."""
        used, self._used = self._used, []
        return iter(used)
