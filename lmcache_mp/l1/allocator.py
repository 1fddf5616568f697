"""Finding room for chunks: free slots, free pages, or somebody else's places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter

from lmcache_mp.l1.order import ORDERS
from lmcache_mp.l1.slab import PageTable, SizeClass, Slab, best_slab_pages
from lmcache_mp.l1.slot import FREE, NOWHERE, READY, Slot
from lmcache_mp.l1.state_file import StateFile
from lmcache_mp.messages import SLOT_UNIT_BYTES

MAX_UNFINISHED_SHARE = 1 / 2
"""Of L1: beyond, incomplete chunks that nobody writes are protected no longer."""

NEARLY_FULL_SHARE = 7 / 8

SLOTS_LOOKED_AT = 16384
"""Bound of the search for a slab that nobody uses, when pages are to change their class."""


_slab_of = attrgetter("slab")


class Allocator:
    """Owns pages, slabs and eviction orders."""

    def __init__(self, state: StateFile, policy: str) -> None:
        self._state = state
        self._order = ORDERS[policy]
        self._units_per_page = state.geometry.page_bytes // SLOT_UNIT_BYTES
        self._uses = 0
        self.pages = PageTable([None] * state.geometry.pages)
        self.classes: dict[int, SizeClass] = {}
        self.used_units = 0
        self.unfinished_units = 0
        self.evictions = 0
        self.no_records: str = ""
        """Why the last slab could not be made, if its records found no room."""

    @property
    def room_bytes(self) -> int:
        """What L1 holds at most."""
        return len(self.pages.owners) * self._units_per_page * SLOT_UNIT_BYTES

    @property
    def nearly_full(self) -> bool:
        """Whether the next stores will evict."""
        populated = self.pages.populated * self._units_per_page
        return self.used_units >= populated * NEARLY_FULL_SHARE

    def size_class(self, chunk_bytes: int) -> SizeClass:
        """The class for chunks of that size."""
        units = max(1, -(-chunk_bytes // SLOT_UNIT_BYTES))
        found = self.classes.get(units)
        if found is None:
            fewest = -(-units // self._units_per_page)
            pages = best_slab_pages(units, self._units_per_page)
            pages = min(pages, max(self._state.geometry.pages, fewest))
            found = SizeClass(units, self._units_per_page, pages, self._order())
            self.classes[units] = found
        return found

    def let_go(self, size_class: SizeClass) -> None:
        """Forget a class that nobody stores into and that has no pages."""
        if not size_class.namespaces and not size_class.slabs:
            self.classes.pop(size_class.slot_units, None)

    def allocate(self, size_class: SizeClass, count: int, now_s: float) -> list[Slot]:
        """Slots for that many new chunks, evicting if need be; fewer if what could go is in use.

        The caller makes them INCOMPLETE.
        """
        slots = self._take_free(size_class, count)
        while (missing := count - len(slots)) > 0:
            if self._add_slab(size_class) or self._others_are_older(size_class, now_s):
                slots += self._take_free(size_class, missing)
            elif victims := self._evict(size_class, missing, now_s):
                slots += victims
            elif self._take_pages(size_class, now_s, math.inf):
                slots += self._take_free(size_class, missing)
            else:
                break
        return slots

    def occupy(self, size_class: SizeClass, slots: int) -> None:
        """So many slots of the class hold chunks that were found in the records."""
        self.used_units += slots * size_class.slot_units

    def free(self, slot: Slot) -> None:
        """The slot holds nothing any more; it is in no index, and its record is clear."""
        slot.state = FREE
        slot.index = NOWHERE
        slot.users = slot.writers = slot.committed = 0
        slab = slot.slab
        slab.vacant += 1
        slab.size_class.free.append(slot)
        self.used_units -= slab.size_class.slot_units

    def forget(self, slot: Slot) -> None:
        """Take a chunk out of index and records."""
        self._state.clear_slot(slot.record)
        slot.index.pop(slot.key, None)
        slot.index = NOWHERE

    def used_now(self, slots: Sequence[Slot]) -> None:
        """READY slots of one class whose last lease ended: they go later than all others.

        A prompt's slots come last to first, so that its head stays youngest: a prefix without its
        tail is worth something, a tail without its prefix nothing.
        """
        if slots:
            self._uses += 1
            for slab in set(map(_slab_of, slots)):
                slab.last_used = self._uses
            slots[0].slab.size_class.order.add(slots)

    def await_others(self, slot: Slot, until_s: float) -> None:
        """An INCOMPLETE chunk that nobody writes just now: keep it for its other ranks."""
        size_class = slot.slab.size_class
        slot.protected_until_s = until_s
        size_class.unfinished[slot] = None
        self.unfinished_units += size_class.slot_units

    def written_again(self, slot: Slot) -> None:
        """An INCOMPLETE chunk that waited is being written, or goes."""
        size_class = slot.slab.size_class
        del size_class.unfinished[slot]
        self.unfinished_units -= size_class.slot_units

    def restore_slab(self, first_page: int, pages: int, slot_units: int) -> Slab:
        """The slab that a state file records, all its slots carved and for the caller to fill."""
        size_class = self.size_class(slot_units * SLOT_UNIT_BYTES)
        slab = self._slab(size_class, first_page, pages)
        slab.carve(slab.capacity)
        slab.vacant = 0
        size_class.slabs.append(slab)
        self.pages.give(slab)
        return slab

    def slot_at(self, address: int) -> Slot | None:
        """The slot that begins there; None if none does."""
        page = address // self._units_per_page
        slab = self.pages.owners[page] if page < len(self.pages.owners) else None
        if slab is None:
            return None
        position, inside = divmod(address - slab.base_address, slab.size_class.slot_units)
        return None if inside or position >= len(slab.slots) else slab.slots[position]

    def _slab(self, size_class: SizeClass, first_page: int, pages: int) -> Slab:
        return Slab(
            size_class,
            first_page=first_page,
            pages=pages,
            capacity=pages * self._units_per_page // size_class.slot_units,
            base_address=first_page * self._units_per_page,
            base_record=self._state.geometry.slot_record(first_page, 0),
        )

    def _add_slab(self, size_class: SizeClass) -> bool:
        """Carve free pages, if there are as many side by side."""
        if size_class.searched_at == self.pages.changes:
            return False
        first = self.pages.free_run(size_class.slab_pages)
        if first is None:
            size_class.searched_at = self.pages.changes
            return False
        slab = self._slab(size_class, first, size_class.slab_pages)
        try:
            self._state.put_slab(first, slab.pages, size_class.slot_units, slab.capacity)
        except OSError as fault:  # the state file's filesystem is full
            self.no_records = f"no room for the records of a slab: {fault.strerror}"
            return False
        self.no_records = ""
        size_class.slabs.append(slab)
        self.pages.give(slab)
        return True

    def _take_free(self, size_class: SizeClass, count: int) -> list[Slot]:
        slots = size_class.take_free(count) if count else []
        self.used_units += len(slots) * size_class.slot_units
        return slots

    def _evict(self, size_class: SizeClass, count: int, now_s: float) -> list[Slot]:
        """Up to so many slots of the class whose chunks are given up, for new chunks at once."""
        if len(self.classes) > 1:  # other classes' pages are to be looked at in between
            count = min(count, max(1, size_class.evictions_until_comparison))
        victims = self._stale(size_class, count, now_s)
        victims += self._coldest(size_class, count - len(victims))
        self._give_up(victims)
        size_class.evictions_until_comparison -= len(victims)
        return victims

    def _coldest(self, size_class: SizeClass, count: int) -> list[Slot]:
        """Chunks taken out of the order to be evicted; those that are being read stay for now."""
        coldest: list[Slot] = []
        read: list[Slot] = []
        while len(coldest) < count and (victims := size_class.order.victims(count - len(coldest))):
            idle = [slot for slot in victims if not slot.users]
            if len(idle) < len(victims):
                read += [slot for slot in victims if slot.users]
            coldest += idle
        if read:
            size_class.order.add(read)
        return coldest

    def _stale(self, size_class: SizeClass, count: int, now_s: float) -> list[Slot]:
        """Unfinished chunks that have waited long enough, or are too many."""
        stale: list[Slot] = []
        for slot in size_class.unfinished:
            too_many = self._too_many_unfinished(len(stale) * size_class.slot_units)
            if len(stale) == count or not (too_many or slot.evictable(now_s)):
                break
            stale.append(slot)
        for slot in stale:
            self.written_again(slot)
        return stale

    def _too_many_unfinished(self, leaving_units: int) -> bool:
        populated = self.pages.populated * self._units_per_page
        return self.unfinished_units - leaving_units > populated * MAX_UNFINISHED_SHARE

    def _give_up(self, slots: Sequence[Slot]) -> None:
        """Evict chunks that nobody uses and that stand in no order any more."""
        self._state.clear_slots(slots)
        for slot in slots:
            slot.index.pop(slot.key, None)
            slot.committed = 0
        self.evictions += len(slots)

    def _others_are_older(self, size_class: SizeClass, now_s: float) -> bool:
        """Take pages of another class if its longest unused slab is older than ours.

        Looked at once in as many evictions as a slab has slots, for it walks all slabs.
        """
        if len(self.classes) == 1 or size_class.evictions_until_comparison > 0:
            return False
        size_class.evictions_until_comparison = size_class.slab_slots
        oldest = min((slab.age for slab in size_class.slabs), default=math.inf)
        return self._take_pages(size_class, now_s, oldest)

    def _take_pages(self, size_class: SizeClass, now_s: float, older_than: float) -> bool:
        """Give pages of other classes to this one: those whose youngest chunk is oldest."""
        if len(self.classes) == 1:
            return False
        looked_at = 0
        for age, first in self.pages.cheapest_runs(size_class.slab_pages, besides=size_class):
            if age >= older_than or looked_at > SLOTS_LOOKED_AT:
                return False
            run = self.pages.owners[first : first + size_class.slab_pages]
            slabs = {slab for slab in run if slab is not None}
            if all(slab.idle(now_s) for slab in slabs):
                for slab in slabs:
                    self._dissolve(slab)
                return self._add_slab(size_class)
            looked_at += sum(len(slab.slots) for slab in slabs)
        return False

    def _dissolve(self, slab: Slab) -> None:
        """Evict all of a slab's chunks and take its pages back."""
        size_class = slab.size_class
        held = [slot for slot in slab.slots if slot.state != FREE]
        size_class.order.remove([slot for slot in held if slot.state == READY])
        for slot in held:
            if slot.state != READY:
                self.written_again(slot)
        self._give_up(held)
        self.used_units -= len(held) * size_class.slot_units
        size_class.free = [slot for slot in size_class.free if slot.slab is not slab]
        size_class.slabs.remove(slab)
        slab.slots.clear()  # a cycle otherwise, and the engine collects none
        self._state.drop_slab(slab.first_page)
        self.pages.take_back(slab)
        self.let_go(size_class)
