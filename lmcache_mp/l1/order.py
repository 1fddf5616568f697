"""In which order slots are evicted. A policy is one class here and one row of `ORDERS`.

Plain LFU and SIEVE are traps for prefix caches: they evict exactly the tail that a conversation's
next turn needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Protocol

from typing_extensions import override

from lmcache_mp.l1.slot import Slot


class EvictionOrder(Protocol):
    """The slots of one size class that may be evicted at all: READY and unleased.

    `Slot.mark` is an order's own; 0 in a slot that stands in none.
    """

    def add(self, slots: Sequence[Slot]) -> None:
        """These were used just now, the last one last, and nobody leases them any more."""

    def remove(self, slots: Sequence[Slot]) -> None:
        """These are leased, or their chunks are gone. They must be in the order."""

    def victims(self, count: int) -> list[Slot]:
        """Take out the slots to evict next, as many as there are up to `count`."""

    def coldest(self) -> Iterator[Slot]:
        """All slots, those to evict next first. The order must not change meanwhile."""

    def __contains__(self, slot: Slot) -> bool: ...

    def __len__(self) -> int: ...


class Lru(EvictionOrder):
    """Least recently used first.

    Slots come and go by the prompt, so the order is one of batches: a slot's mark says in which
    batch it counts, and where it stands in an older one it is passed over. Taking a slot out is
    thereby one store to memory that the caller has just touched, where a linked list would touch
    its neighbours; what is passed over is swept a little with every addition.
    """

    def __init__(self) -> None:
        self._swept: deque[tuple[int, list[Slot]]] = deque()
        self._unswept: deque[tuple[int, list[Slot]]] = deque()
        """Batches and their marks, oldest first; all of them younger than the swept ones. A
        batch's slots stand youngest first."""
        self._entries = 0
        """Slots in all batches, also those that are passed over."""
        self._marks = 0
        self._length = 0

    @override
    def add(self, slots: Sequence[Slot]) -> None:
        self._marks += 1
        mark = self._marks
        for slot in slots:
            slot.mark = mark
        self._unswept.append((mark, list(reversed(slots))))
        self._entries += len(slots)
        self._length += len(slots)
        if self._entries > 2 * self._length + 1024:
            self._sweep(4 * len(slots))

    @override
    def remove(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            slot.mark = 0
        self._length -= len(slots)

    @override
    def victims(self, count: int) -> list[Slot]:
        victims: list[Slot] = []
        while len(victims) < count and (batches := self._swept or self._unswept):
            mark, slots = batches[0]
            while slots and len(victims) < count:
                slot = slots.pop()
                self._entries -= 1
                if slot.mark == mark:
                    slot.mark = 0
                    victims.append(slot)
            if not slots:
                batches.popleft()
        self._length -= len(victims)
        return victims

    @override
    def coldest(self) -> Iterator[Slot]:
        for mark, slots in chain(self._swept, self._unswept):
            for slot in reversed(slots):
                if slot.mark == mark:
                    yield slot

    @override
    def __contains__(self, slot: Slot) -> bool:
        return slot.mark != 0

    @override
    def __len__(self) -> int:
        return self._length

    def _sweep(self, entries: int) -> None:
        """Forget what is passed over, in about so many entries."""
        while entries > 0:
            if not self._unswept:
                self._swept, self._unswept = self._unswept, self._swept
            mark, slots = self._unswept.popleft()
            live = [slot for slot in slots if slot.mark == mark]
            if live:
                self._swept.append((mark, live))
            self._entries -= len(slots) - len(live)
            entries -= len(slots)


ORDERS: dict[str, Callable[[], EvictionOrder]] = {"lru": Lru}
"""By the name that `--eviction-policy` takes."""
