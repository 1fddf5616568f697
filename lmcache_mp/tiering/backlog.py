"""Chunks that wait for one adapter: keys only, bounded by the bytes that they stand for."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from lmcache_mp.l1.index import NamespaceEntry


class Backlog:
    """First come, first served. Holds no lease: what leaves L1 meanwhile is lost to the adapter."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._batches: deque[tuple[NamespaceEntry, list[bytes]]] = deque()
        self.bytes = 0

    def __len__(self) -> int:
        """Batches, not chunks."""
        return len(self._batches)

    @property
    def room_bytes(self) -> int:
        """How many bytes more may wait."""
        return self._limit_bytes - self.bytes

    def add(self, entry: NamespaceEntry, keys: Sequence[bytes]) -> int:
        """Let chunks wait, as many as there is room for, first ones first; how many there was for.

        One that is larger than the whole backlog waits in an empty one.
        """
        chunk_bytes = entry.namespace.chunk_bytes
        count = min(len(keys), max(self.room_bytes // chunk_bytes, not self.bytes))
        if count > 0:
            self._batches.append((entry, list(keys[:count])))
            self.bytes += count * chunk_bytes
        return max(count, 0)

    def take(
        self, max_chunks: int, max_bytes: int, threads: int
    ) -> tuple[NamespaceEntry, list[bytes]] | None:
        """Some that wait longest, at least one, of one namespace; None if there are none.

        Of a batch each of the threads gets a share, the later ones smaller ones.
        """
        if not self._batches:
            return None
        entry, keys = self._batches[0]
        chunk_bytes = entry.namespace.chunk_bytes
        count = max(1, min(max_chunks, max_bytes // chunk_bytes, -(-len(keys) // threads)))
        taken = keys[:count]
        del keys[:count]
        if not keys:
            self._batches.popleft()
        self.bytes -= len(taken) * chunk_bytes
        return entry, taken

    def clear(self) -> int:
        """Forget all; returns how many chunks."""
        chunks = sum(len(keys) for _, keys in self._batches)
        self._batches.clear()
        self.bytes = 0
        return chunks
