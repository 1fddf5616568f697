"""What a restarted engine makes of the records it finds.

READY chunks are hits again. Leases of owners that still live go on exactly as they were; those of
the dead end as if their owners had died just now. What is damaged, unfinished or of a cleared
generation is dropped and counted. Nobody is waited for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter, itemgetter

import msgspec

from lmcache_mp import namespace as namespaces
from lmcache_mp.l1.index import NamespaceEntry
from lmcache_mp.l1.lease import Lease, LeaseKind, shard_bits
from lmcache_mp.l1.reservations import UNFINISHED_PROTECTION_S
from lmcache_mp.l1.slab import Slab
from lmcache_mp.l1.slot import DOOMED, FREE, INCOMPLETE, READY, Slot, State
from lmcache_mp.l1.slot_record import SlotRecord
from lmcache_mp.l1.state_file import LeaseRecord
from lmcache_mp.l1.tier import L1

Dropped = Counter[str]
"""Records not adopted, by reason."""

LOST_RIGHTS = ("damaged slab", "damaged lease", "lease without slots")
"""What may have stood for a client's right to bytes that it is using at this moment."""

USED_AT_ONCE = 64
"""Chunks that count as used in one go: the eviction order keeps batches, about a prompt each."""

_class_of = attrgetter("slab.size_class")


class AdoptionUnsafe(Exception):
    """The records no longer say which bytes living clients use: start cold, with a new segment."""


def adopt(l1: L1, living: Collection[bytes], now_s: float) -> Dropped:
    """Fill an empty `L1` from its state file. `living` are the ids of the clients that live.

    Raises `AdoptionUnsafe`; the L1 and its state file are then of no use any more.
    """
    dropped: Dropped = Counter()
    _populated(l1)
    _namespaces(l1, dropped)
    slabs = _slabs(l1, dropped)
    found = _chunks(l1, slabs, dropped)
    _leases(l1, dropped)
    lost = [reason for reason in LOST_RIGHTS if dropped[reason]]
    if lost and living:
        raise AdoptionUnsafe(f"{lost[0]} in the state file, and {len(living)} clients live")
    _settle(l1, slabs, found, dropped, now_s)
    for owner in list(l1.ledger.owners.values()):
        if owner.id not in living:
            l1.owner_died(owner, now_s)
    return +dropped


@dataclass(slots=True)
class Found:
    """The credible records of slots, each key once."""

    ready: list[tuple[int, Slot]] = field(default_factory=list)
    """With the sequence of their commit; hits already."""
    incomplete: dict[Slot, SlotRecord] = field(default_factory=dict)


def _populated(l1: L1) -> None:
    """Where the mark itself is damaged, what slabs cover was populated."""
    geometry = l1.state.geometry
    ends = [(first + pages) * geometry.page_bytes for first, pages, _ in l1.state.slabs()]
    covered = min(max(ends, default=0), geometry.l1_bytes)
    l1.state.populated_bytes = max(l1.state.populated_bytes, covered)
    l1.allocator.pages.populate(l1.state.populated_bytes // geometry.page_bytes)


def _namespaces(l1: L1, dropped: Dropped) -> None:
    for namespace_id, generation, blob in l1.state.namespaces():
        try:
            if blob is None:
                raise msgspec.DecodeError
            l1.namespaces.add(namespace_id, generation, namespaces.decode(blob))
        except msgspec.DecodeError:
            dropped["damaged namespace"] += 1
    generations = (entry.generation for entry in l1.namespaces.entries.values())
    l1.state.set_last_generation(max(generations, default=0))  # the counter may be damaged


def _slabs(l1: L1, dropped: Dropped) -> list[Slab]:
    """Carve the slabs anew."""
    slabs: list[Slab] = []
    taken = l1.allocator.pages.owners
    for first, pages, units in l1.state.slabs():
        fits = pages and units and first + pages <= l1.allocator.pages.populated
        if not fits or any(taken[first : first + pages]):
            dropped["damaged slab"] += 1
            l1.state.drop_slab(first)
            continue
        slabs.append(l1.allocator.restore_slab(first, pages, units))
    return slabs


def _chunks(l1: L1, slabs: list[Slab], dropped: Dropped) -> Found:
    """Read all slots' records, and make READY what is."""
    found = Found()
    entries = l1.namespaces.entries
    for slab in slabs:
        filled = len(found.ready)
        for slot, record in l1.state.slots(slab.base_record, slab.slots):
            entry = None if record is None else entries.get(record.namespace_id)
            if record is None:
                reason = "damaged slot"
            elif entry is None or entry.size_class is not slab.size_class:
                reason = "unknown namespace"
            elif record.generation != entry.generation:
                reason = "cleared"
            elif not record.ready:
                found.incomplete[slot] = record
                continue
            elif record.key in entry.ready:
                reason = "duplicate"
            else:
                _fill(slot, record, entry, READY)
                found.ready.append((record.sequence, slot))
                continue
            dropped[reason] += 1
            l1.state.clear_slot(slot.record)
        l1.allocator.occupy(slab.size_class, len(found.ready) - filled)
    return found


def _fill(slot: Slot, record: SlotRecord, entry: NamespaceEntry, state: State) -> None:
    slot.key, slot.tenant, slot.namespace = record.key, record.tenant, entry
    slot.protected_until_s = 0.0
    slot.state = state
    if state is READY:
        slot.index, slot.committed = entry.ready, entry.all_shards
    else:
        slot.index, slot.committed = entry.incomplete, record.committed
    slot.index[record.key] = slot


def _leases(l1: L1, dropped: Dropped) -> None:
    """Put the recorded leases back; what they do to slots comes later."""
    parts: dict[tuple[bytes, int], list[LeaseRecord]] = {}
    used: set[int] = set()
    for record in l1.state.leases():
        if isinstance(record, int):
            dropped["damaged lease"] += 1
            l1.state.clear_lease(record)
        elif any(l1.allocator.slot_at(address) is None for address in record.addresses):
            dropped["lease without slots"] += 1
            l1.state.clear_lease(record.entry)
        else:
            parts.setdefault((record.owner, record.lease_id), []).append(record)
            used.add(record.entry)
    l1.ledger.free_entries = [e for e in l1.ledger.free_entries if e not in used]
    for (owner_id, lease_id), records in parts.items():
        records.sort(key=lambda record: record.part)
        first = records[0]
        if [record.part for record in records] != list(range(first.parts)):
            dropped["unfinished lease"] += 1  # never granted: the answer leaves after the last part
            for record in records:
                l1.state.clear_lease(record.entry)
                l1.ledger.free_entries.append(record.entry)
            continue
        held = [l1.allocator.slot_at(address) for r in records for address in r.addresses]
        entries = [record.entry for record in records]
        kind = LeaseKind(first.kind)
        lease = Lease(lease_id, kind, held, first.shard, entries=entries)
        l1.ledger.restore(l1.ledger.owner(owner_id), lease)


def _settle(l1: L1, slabs: list[Slab], found: Found, dropped: Dropped, now_s: float) -> None:
    """Give every slot its place: by its record, and by the leases on it."""
    for owner in l1.ledger.owners.values():
        for lease in owner.leases.values():
            _apply(l1, lease, found)
    found.ready.sort(key=itemgetter(0))
    _put_in_order(l1, [slot for _, slot in found.ready if not slot.users])
    for slot, record in found.incomplete.items():
        _settle_incomplete(l1, slot, record, dropped, now_s)
    for slab in slabs:
        for slot in slab.slots:
            if slot.state is not FREE:
                continue
            if slot.users or slot.writers:  # deleted, and somebody reads or writes it still
                slot.state = DOOMED
                l1.allocator.occupy(slab.size_class, 1)
            else:
                slab.vacant += 1
                slab.size_class.free.append(slot)
    l1.reservations.commits = found.ready[-1][0] if found.ready else 0


def _apply(l1: L1, lease: Lease, found: Found) -> None:
    held = list(lease.slots)
    bits = shard_bits(lease.shard)
    for position, slot in enumerate(held):
        assert slot is not None
        if lease.kind != LeaseKind.WRITE:
            slot.users += 1
            continue
        record = found.incomplete.get(slot)
        if slot.state is READY:
            lease.namespace = slot.namespace
        elif record is not None:
            lease.namespace = l1.namespaces[record.namespace_id]
        if slot.state is READY or (record is not None and record.committed & bits == bits):
            held[position] = None  # the engine died between this commit and the lease's end
        else:
            slot.writers |= bits
    lease.slots = held


def _put_in_order(l1: L1, oldest_first: list[Slot]) -> None:
    for _, run in groupby(oldest_first, key=_class_of):
        slots = list(run)
        for at in range(0, len(slots), USED_AT_ONCE):
            l1.allocator.used_now(slots[at : at + USED_AT_ONCE])


def _settle_incomplete(
    l1: L1, slot: Slot, record: SlotRecord, dropped: Dropped, now_s: float
) -> None:
    entry = l1.namespaces[record.namespace_id]
    known = record.key in entry.ready or record.key in entry.incomplete
    if known or slot.users or not (slot.writers or record.committed):
        dropped["duplicate" if known else "unfinished"] += 1
        l1.state.clear_slot(slot.record)
        return
    _fill(slot, record, entry, INCOMPLETE)
    l1.allocator.occupy(entry.size_class, 1)
    if not slot.writers:
        l1.allocator.await_others(slot, now_s + UNFINISHED_PROTECTION_S)
