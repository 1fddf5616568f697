"""What one adapter is known to have, or not to have: hints that save questions, never a promise."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

MAX_KNOWN = 1 << 17
"""Keys remembered of one adapter: some 15 MB."""


class Known:
    """A bounded set; the keys that were added first go first."""

    def __init__(self, limit: int = MAX_KNOWN) -> None:
        self._limit = limit
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, keys: Iterable[bytes]) -> None:
        """They are there."""
        self._keys.update(dict.fromkeys(keys))
        while len(self._keys) > self._limit:
            self._keys.popitem(last=False)

    def discard(self, keys: Iterable[bytes]) -> None:
        """They are not there, or not for sure."""
        for key in keys:
            self._keys.pop(key, None)

    def clear(self) -> None:
        """Nothing is known."""
        self._keys.clear()
