"""The conservation law of L1: what is free, reserved, incomplete and ready makes up all slots, and
records, indexes, orders and leases tell the same story. Read-only; takes time with the size of L1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from lmcache_mp.l1.lease import Lease, LeaseKind, shard_bits
from lmcache_mp.l1.slot import DOOMED, FREE, INCOMPLETE, READY, Slot
from lmcache_mp.l1.tier import L1


def check(l1: L1) -> list[str]:
    """Every broken invariant as a sentence; empty is good."""
    return [
        *_pages(l1),
        *_slots(l1),
        *_indexes(l1),
        *_leases(l1),
    ]


def all_slots(l1: L1) -> Iterator[Slot]:
    """Every slot carved so far."""
    for size_class in l1.allocator.classes.values():
        for slab in size_class.slabs:
            yield from slab.slots


def _pages(l1: L1) -> Iterator[str]:
    pages = l1.allocator.pages
    slabs = [slab for c in l1.allocator.classes.values() for slab in c.slabs]
    for slab in slabs:
        run = pages.owners[slab.first_page : slab.first_page + slab.pages]
        if any(owner is not slab for owner in run):
            yield f"slab at page {slab.first_page} does not own its {slab.pages} pages"
    owned = sum(owner is not None for owner in pages.owners)
    if owned != sum(slab.pages for slab in slabs):
        yield f"{owned} pages are owned, slabs have {sum(slab.pages for slab in slabs)}"
    recorded = sorted(l1.state.slabs())
    expected = sorted((s.first_page, s.pages, s.size_class.slot_units) for s in slabs)
    if recorded != expected:
        yield f"slabs are {expected}, records say {recorded}"


def _slots(l1: L1) -> Iterator[str]:
    used = unfinished = 0
    for size_class in l1.allocator.classes.values():
        free = set(size_class.free)
        if len(free) != len(size_class.free):
            yield f"a slot of {size_class.slot_units} units is free twice"
        slots = [slot for slab in size_class.slabs for slot in slab.slots]
        states = Counter(slot.state for slot in slots)
        if states[FREE] != len(free):
            yield f"{states[FREE]} slots are in state FREE, {len(free)} on the free list"
        for slab in size_class.slabs:
            vacant = sum(slot.state == FREE for slot in slab.slots)
            if vacant != slab.vacant:
                yield f"slab at page {slab.first_page}: {vacant} slots vacant, not {slab.vacant}"
        used += (len(slots) - states[FREE]) * size_class.slot_units
        unfinished += len(size_class.unfinished) * size_class.slot_units
        for slot in slots:
            yield from _slot(l1, slot, slot in free)
    if used != l1.allocator.used_units:
        yield f"{used} units are used, the counter says {l1.allocator.used_units}"
    if unfinished != l1.allocator.unfinished_units:
        yield f"{unfinished} units wait unfinished, counter: {l1.allocator.unfinished_units}"


def _slot(l1: L1, slot: Slot, on_free_list: bool) -> Iterator[str]:
    size_class = slot.slab.size_class
    if on_free_list != (slot.state == FREE):
        yield f"{slot} on the free list: {on_free_list}"
    in_order = slot in size_class.order
    if in_order > (slot.state == READY) or in_order < (slot.state == READY and not slot.users):
        yield f"{slot} in the eviction order: {in_order}"
    waits = slot.state == INCOMPLETE and not slot.writers
    if (slot in size_class.unfinished) != waits:
        yield f"{slot} waits for other ranks: {waits}"
    if waits and not slot.committed:
        yield f"{slot} is incomplete, and nobody writes it"
    if slot.state == DOOMED and not (slot.users or slot.writers):
        yield f"{slot} waits for nobody"
    if slot.state in (READY, INCOMPLETE):
        if slot.index.get(slot.key) is not slot:
            yield f"{slot} is not in its index"
        record = l1.state.slot(slot)
        if record is None:
            yield f"{slot} has no good record"
        elif (record.key, record.namespace_id, record.ready) != (
            slot.key, slot.namespace.id, slot.state == READY
        ):  # fmt: skip
            yield f"{slot} is recorded as {record}"
        elif slot.state == INCOMPLETE and record.committed != slot.committed:
            yield f"{slot} is recorded with shards {record.committed:b}"
    elif not l1.state.slot_empty(slot.record):
        yield f"{slot} has a record"


def _indexes(l1: L1) -> Iterator[str]:
    indexed = sum(len(d) for d in l1.cleared.dicts)
    spaces = Counter(entry.size_class for entry in l1.namespaces.entries.values())
    for size_class in l1.allocator.classes.values():
        if size_class.namespaces != spaces[size_class]:
            yield f"{spaces[size_class]} namespaces store {size_class.slot_units} units a slot"
    for entry in l1.namespaces.entries.values():
        indexed += len(entry.ready) + len(entry.incomplete)
        for key, slot in entry.ready.items():
            if slot.state != READY or slot.key != key or slot.namespace is not entry:
                yield f"namespace {entry.id} has {slot} as ready"
        for key, slot in entry.incomplete.items():
            if slot.state != INCOMPLETE or slot.key != key or slot.namespace is not entry:
                yield f"namespace {entry.id} has {slot} as incomplete"
    held = sum(slot.state in (READY, INCOMPLETE) for slot in all_slots(l1))
    if held != indexed:
        yield f"{held} slots hold chunks, indexes have {indexed}"


def _leases(l1: L1) -> Iterator[str]:
    users: Counter[Slot] = Counter()
    writers: Counter[Slot] = Counter()
    entries: list[int] = []
    for owner in l1.ledger.owners.values():
        others = len(entries)
        for lease in owner.leases.values():
            entries += lease.entries
            yield from _lease(lease, users, writers)
        if owner.records != len(entries) - others:
            yield f"an owner has {len(entries) - others} lease records, not {owner.records}"
    for slot in all_slots(l1):
        if slot.users != users[slot]:
            yield f"{slot} is used by {users[slot]} leases"
        if slot.writers != writers[slot]:
            yield f"{slot} is written by leases on shards {writers[slot]:b}"
    every = range(l1.state.geometry.leases)
    recorded = [entry for entry in every if l1.state.lease_active(entry)]
    if sorted(entries) != recorded:
        yield f"leases have the records {sorted(entries)}, active are {recorded}"
    if sorted([*entries, *l1.ledger.free_entries]) != list(every):
        yield f"{len(entries)} used and {len(l1.ledger.free_entries)} free lease records"


def _lease(lease: Lease, users: Counter[Slot], writers: Counter[Slot]) -> Iterator[str]:
    for slot in lease.slots:
        if slot is None:
            continue
        if lease.kind != LeaseKind.WRITE:
            users[slot] += 1
        elif writers[slot] & shard_bits(lease.shard):
            yield f"{slot} is written twice for shard {lease.shard}"
        else:
            writers[slot] |= shard_bits(lease.shard)
