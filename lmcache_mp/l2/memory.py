"""`{"type": "memory", "capacity": "1GiB"}`: memory of the worker, for as long as it runs.

The example to copy, and for tests. What is to stay in memory fits better into a larger L1.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from typing_extensions import override

from lmcache_mp import l2
from lmcache_mp.units import Size


class Config(l2.AdapterConfig, frozen=True, kw_only=True):
    """How much."""

    capacity: Size = Size("1GiB")
    """Past it goes what was not used for longest."""


class Adapter(l2.Adapter[Config]):
    """A dict, the least recently used object first."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._objects: OrderedDict[bytes, bytes] = OrderedDict()
        self._used_bytes = 0
        self._lock = threading.Lock()

    @override
    def lookup(self, keys: Sequence[bytes]) -> Sequence[bool]:
        return [key in self._objects for key in keys]

    @override
    def store(self, key: bytes, parts: Sequence[memoryview]) -> None:
        whole = b"".join(parts)
        with self._lock:
            self._drop(key)
            self._objects[key] = whole
            self._used_bytes += len(whole)
            while self._used_bytes > self.config.capacity:
                self._drop(next(iter(self._objects)))

    @override
    def load(self, key: bytes, parts: Sequence[memoryview]) -> int | None:
        with self._lock:
            if (whole := self._objects.get(key)) is None:
                return None
            self._objects.move_to_end(key)
        rest = memoryview(whole)
        for part in parts:
            part[: len(rest)] = rest[: len(part)]
            rest = rest[len(part) :]
        return len(whole)

    @override
    def delete(self, keys: Sequence[bytes]) -> None:
        with self._lock:
            for key in keys:
                self._drop(key)

    @override
    def scan(self) -> Iterator[bytes]:
        with self._lock:  # a copy, for others change the dict meanwhile
            return iter(list(self._objects))

    @override
    def close(self) -> None:
        self.delete(list(self._objects))

    @override
    def figures(self) -> dict[str, int | float]:
        return {"used_bytes": self._used_bytes, "objects": len(self._objects)}

    def _drop(self, key: bytes) -> None:
        self._used_bytes -= len(self._objects.pop(key, b""))
