"""Which objects there are, how large, and which of them was used longest ago. Pure: no files."""

from __future__ import annotations

import heapq


class Catalogue:
    """Objects by key, with size and last use. Not for several threads at a time.

    Each object has an entry in a heap that is never younger than its last use: a use changes only
    the object, and an eviction that meets an entry older than its object puts it back.
    """

    def __init__(self) -> None:
        self.objects = 0
        self.used_bytes = 0
        self._shelves: list[dict[bytes, tuple[int, float]]] = [{} for _ in range(256)]
        """By the first byte of the key: size and time of the last use."""
        self._order: list[tuple[float, bytes]] = []

    def __contains__(self, key: bytes) -> bool:
        return key in self._shelves[key[0]]

    def put(self, key: bytes, size: int, used_at_s: float) -> None:
        """An object is there and was used then, at least."""
        shelf = self._shelves[key[0]]
        before = shelf.get(key)
        if before is None:
            shelf[key] = size, used_at_s
            self.objects += 1
            self.used_bytes += size
            heapq.heappush(self._order, (used_at_s, key))
            if len(self._order) > 2 * self.objects + 1024:  # of objects that are gone
                self._rebuild()
        else:
            shelf[key] = size, max(used_at_s, before[1])
            self.used_bytes += size - before[0]

    def forget(self, key: bytes) -> int:
        """It is not there, or no longer; the bytes that it is known to have had."""
        entry = self._shelves[key[0]].pop(key, None)
        if entry is None:
            return 0
        self.objects -= 1
        self.used_bytes -= entry[0]
        return entry[0]

    def take_oldest(self, wanted_bytes: int) -> list[tuple[bytes, int]]:
        """Take out what was used longest ago, of so many bytes at least or all: keys and sizes."""
        taken: list[tuple[bytes, int]] = []
        while wanted_bytes > 0 and self._order:
            when, key = heapq.heappop(self._order)
            entry = self._shelves[key[0]].get(key)
            if entry is None:
                continue
            size, used_at_s = entry
            if used_at_s > when:
                heapq.heappush(self._order, (used_at_s, key))
                continue
            self.forget(key)
            taken.append((key, size))
            wanted_bytes -= size
        return taken

    def keys_of(self, first: int) -> set[bytes]:
        """Those that begin with this byte."""
        return set(self._shelves[first])

    def _rebuild(self) -> None:
        self._order = [
            (used_at_s, key) for shelf in self._shelves for key, (_, used_at_s) in shelf.items()
        ]
        heapq.heapify(self._order)
