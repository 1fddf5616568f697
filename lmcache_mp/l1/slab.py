"""Where slots come from: pages carved into equal slots of one size class.

A slab is a run of pages; a slot never crosses its end. (Slab allocation after Bonwick, 1994, as in
memcached; that a page may go to another class after its use, as in memcached's slab rebalancer.)
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field

from lmcache_mp.l1.geometry import SLOT_RECORD_BYTES
from lmcache_mp.l1.order import EvictionOrder
from lmcache_mp.l1.slot import Slot

CARVE_AT_ONCE = 256
"""Slots carved in one go: carving a page of the smallest slots at once would take milliseconds."""

MAX_WASTE = 1 / 8
"""Of a slab's bytes behind its last slot; slabs get more pages until they waste less."""

MAX_SLAB_PAGES = 8


def default_page_bytes(l1_bytes: int) -> int:
    """Page size for an L1 of that size: about a 64th of it, from 64 KiB to 64 MiB."""
    page = 64 << 20
    while page > 64 << 10 and page * 64 > l1_bytes:
        page //= 2
    return page


def best_slab_pages(slot_units: int, page_units: int) -> int:
    """How many pages a slab of such slots takes: as few as waste little."""
    fewest = -(-slot_units // page_units)

    def waste(pages: int) -> float:
        return pages * page_units % slot_units / (pages * page_units)

    candidates = range(fewest, max(fewest, MAX_SLAB_PAGES) + 1)
    for pages in candidates:
        if waste(pages) <= MAX_WASTE:
            return pages
    return min(candidates, key=waste)


@dataclass(slots=True, eq=False)
class Slab:
    """A run of pages that belongs to one size class."""

    size_class: SizeClass
    first_page: int
    pages: int
    capacity: int
    """Slots that fit."""
    base_address: int
    """Of its first slot, in `SLOT_UNIT_BYTES`; `base_record` likewise, in the state file."""
    base_record: int
    slots: list[Slot] = field(default_factory=list)
    """Those carved so far."""
    last_used: int = 0
    """When its youngest chunk was used, on the allocator's use counter."""
    vacant: int = 0
    """Slots on the free list."""

    @property
    def age(self) -> int:
        """When it was used last; -1 if nothing is in it."""
        return -1 if self.vacant == len(self.slots) else self.last_used

    def carve(self, upto: int) -> list[Slot]:
        """Make the slots up to that position; returns the new ones."""
        units = self.size_class.slot_units
        made = [
            Slot(self, self.base_address + at * units, self.base_record + at * SLOT_RECORD_BYTES)
            for at in range(len(self.slots), min(upto, self.capacity))
        ]
        self.slots += made
        self.vacant += len(made)
        return made

    def idle(self, now_s: float) -> bool:
        """Whether it could be given to another class: nobody reads, writes or awaits anything."""
        return all(slot.evictable(now_s) for slot in self.slots)


@dataclass(slots=True, eq=False)
class SizeClass:
    """All slots of one size."""

    slot_units: int
    """Size of a slot, in `SLOT_UNIT_BYTES`; `page_units` likewise."""
    page_units: int
    slab_pages: int
    order: EvictionOrder
    namespaces: int = 0
    """Registered ones whose chunks have this size."""
    slabs: list[Slab] = field(default_factory=list)
    free: list[Slot] = field(default_factory=list)
    """Carved and empty."""
    unfinished: OrderedDict[Slot, None] = field(default_factory=OrderedDict)
    """INCOMPLETE chunks that nobody writes at present, by the time of their last commit."""
    evictions_until_comparison: int = 0
    """Slots to evict here before other classes' pages are looked at again."""
    searched_at: int = -1
    """State of the page table in which no free run was found."""

    @property
    def slab_slots(self) -> int:
        """Slots of one slab."""
        return self.slab_pages * self.page_units // self.slot_units

    def take_free(self, count: int) -> list[Slot]:
        """Up to so many free slots, carved if need be."""
        if len(self.free) < count and self.slabs:
            slab = self.slabs[-1]  # only the newest has more to carve
            carved = slab.carve(len(slab.slots) + max(count, CARVE_AT_ONCE))
            self.free[:0] = reversed(carved)
        taken = self.free[-count:]
        del self.free[-count:]
        taken.reverse()
        for slot in taken:
            slot.slab.vacant -= 1
        return taken


@dataclass(slots=True)
class PageTable:
    """Which slab each page of the segment belongs to."""

    owners: list[Slab | None]
    populated: int = 0
    """Pages backed by memory; only these are handed out."""
    changes: int = 0
    """Grows whenever a page becomes free."""
    _lowest: int = 0
    """No page below is free."""

    def populate(self, pages: int) -> None:
        """So many pages are backed by memory."""
        if pages > self.populated:
            self.populated = pages
            self.changes += 1

    def free_run(self, pages: int) -> int | None:
        """First page of a run of free, populated pages."""
        run = 0
        for page in range(self._lowest, self.populated):
            if self.owners[page] is not None:
                run = 0
                if page == self._lowest:
                    self._lowest += 1
                continue
            run += 1
            if run == pages:
                return page - pages + 1
        return None

    def give(self, slab: Slab) -> None:
        """Mark a slab's pages as taken."""
        self.owners[slab.first_page : slab.first_page + slab.pages] = [slab] * slab.pages

    def take_back(self, slab: Slab) -> None:
        """Mark a slab's pages as free."""
        self.owners[slab.first_page : slab.first_page + slab.pages] = [None] * slab.pages
        self._lowest = min(self._lowest, slab.first_page)
        self.changes += 1

    def cheapest_runs(self, pages: int, besides: SizeClass) -> list[tuple[float, int]]:
        """`(age, first page)` of all runs of populated pages without a slab of the class `besides`,
        the longest unused first.

        A run's age is when the youngest chunk in it was used; free pages cost nothing.
        """
        ages = [_age(owner, besides) for owner in self.owners[: self.populated]]
        runs = [(max(ages[at : at + pages]), at) for at in range(len(ages) - pages + 1)]
        return sorted(run for run in runs if run[0] < math.inf)


def _age(owner: Slab | None, besides: SizeClass) -> float:
    if owner is None:
        return -1
    return math.inf if owner.size_class is besides else owner.age
