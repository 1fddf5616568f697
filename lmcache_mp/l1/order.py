"""In which order slots are evicted. A policy is one class here and one row of `ORDERS`.

Plain LFU and SIEVE are traps for prefix caches: they evict exactly the tail that a conversation's
next turn needs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Protocol

from typing_extensions import override

from lmcache_mp.l1.slot import Slot


class EvictionOrder(Protocol):
    """The slots of one size class that may be evicted at all: READY and unleased."""

    def add(self, slots: Iterable[Slot]) -> None:
        """These were used just now, the last one last, and nobody leases them any more."""

    def remove(self, slot: Slot) -> None:
        """A slot is leased, or its chunk is gone. It must be in the order."""

    def victims(self, count: int) -> list[Slot]:
        """Take out the slots to evict next, as many as there are up to `count`."""

    def __contains__(self, slot: Slot) -> bool: ...

    def __len__(self) -> int: ...


class Lru(EvictionOrder):
    """Least recently used first.

    The tier adds a prompt's slots last to first, so that its head stays youngest: a prefix without
    its tail is worth something, a tail without its prefix nothing.
    """

    def __init__(self) -> None:
        self._slots: OrderedDict[Slot, None] = OrderedDict()

    @override
    def add(self, slots: Iterable[Slot]) -> None:
        self._slots.update(dict.fromkeys(slots))

    @override
    def remove(self, slot: Slot) -> None:
        del self._slots[slot]

    @override
    def victims(self, count: int) -> list[Slot]:
        pop = self._slots.popitem
        return [pop(last=False)[0] for _ in range(min(count, len(self._slots)))]

    @override
    def __contains__(self, slot: Slot) -> bool:
        return slot in self._slots

    @override
    def __len__(self) -> int:
        return len(self._slots)


ORDERS: dict[str, type[Lru]] = {"lru": Lru}
"""By the name that `--eviction-policy` takes."""
