"""What a restarted engine makes of the records it finds.

READY chunks are hits again. Leases of owners that still live go on exactly as they were; those of
the dead end as if their owners had died just now. What is damaged, unfinished or of a cleared
generation is dropped and counted. Nobody is waited for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import msgspec

from lmcache_mp import namespace as namespaces
from lmcache_mp.l1.lease import Lease, LeaseKind
from lmcache_mp.l1.reservations import UNFINISHED_PROTECTION_S
from lmcache_mp.l1.slab import Slab
from lmcache_mp.l1.slot import DOOMED, FREE, INCOMPLETE, READY, Slot
from lmcache_mp.l1.state_file import LeaseRecord, SlotRecord
from lmcache_mp.l1.tier import L1

Dropped = Counter[str]
"""Records not adopted, by reason."""

LOST_RIGHTS = ("damaged slab", "damaged lease", "lease without slots")
"""What may have stood for a client's right to bytes that it is using at this moment."""


class AdoptionUnsafe(Exception):
    """The records no longer say which bytes living clients use: start cold, with a new segment."""


def adopt(l1: L1, living: Collection[bytes], now_s: float) -> Dropped:
    """Fill an empty `L1` from its state file. `living` are the ids of the clients that live.

    Raises `AdoptionUnsafe`; the L1 and its state file are then of no use any more.
    """
    dropped: Dropped = Counter()
    _populated(l1)
    _namespaces(l1, dropped)
    slots = _slots(l1, dropped)
    records = _chunks(l1, slots, dropped)
    _leases(l1, slots, dropped)
    lost = [reason for reason in LOST_RIGHTS if dropped[reason]]
    if lost and living:
        raise AdoptionUnsafe(f"{lost[0]} in the state file, and {len(living)} clients live")
    _settle(l1, slots, records, dropped, now_s)
    for owner in list(l1.ledger.owners.values()):
        if owner.id not in living:
            l1.owner_died(owner, now_s)
    return +dropped


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


def _slots(l1: L1, dropped: Dropped) -> dict[int, Slot]:
    """Carve the slabs anew; all slots by their address."""
    slabs: list[Slab] = []
    taken = l1.allocator.pages.owners
    for first, pages, units in l1.state.slabs():
        fits = pages and units and first + pages <= l1.allocator.pages.populated
        if not fits or any(taken[first : first + pages]):
            dropped["damaged slab"] += 1
            l1.state.drop_slab(first)
            continue
        slabs.append(l1.allocator.restore_slab(first, pages, units))
    return {slot.address: slot for slab in slabs for slot in slab.slots}


def _chunks(l1: L1, slots: dict[int, Slot], dropped: Dropped) -> dict[Slot, SlotRecord]:
    """The credible records of slots, each key once."""
    found: dict[Slot, SlotRecord] = {}
    seen: set[tuple[int, bytes]] = set()
    state = l1.state
    for slot in slots.values():
        if state.slot_empty(slot.record):
            continue
        record = state.slot(slot.record, slot.address)
        reason = _fault(l1, slot, record)
        if record is not None and not reason and (record.namespace_id, record.key) in seen:
            reason = "duplicate"
        if record is None or reason:
            dropped[reason or "damaged slot"] += 1
            state.clear_slot(slot.record)
            continue
        seen.add((record.namespace_id, record.key))
        found[slot] = record
    return found


def _fault(l1: L1, slot: Slot, record: SlotRecord | None) -> str:
    """Why a record cannot be adopted; empty if it can."""
    if record is None:
        return "damaged slot"
    entry = l1.namespaces.entries.get(record.namespace_id)
    if entry is None or entry.size_class is not slot.slab.size_class:
        return "unknown namespace"
    if record.generation != entry.generation:
        return "cleared"
    return ""


def _leases(l1: L1, slots: dict[int, Slot], dropped: Dropped) -> None:
    """Put the recorded leases back, slots still as they were carved."""
    parts: dict[tuple[bytes, int], list[LeaseRecord]] = {}
    used: set[int] = set()
    for record in l1.state.leases():
        if isinstance(record, int):
            dropped["damaged lease"] += 1
            l1.state.clear_lease(record)
        elif any(address not in slots for address in record.addresses):
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
        held = [slots[address] for record in records for address in record.addresses]
        entries = [record.entry for record in records]
        kind = LeaseKind(first.kind)
        lease = Lease(lease_id, kind, held, first.shard, entries=entries)
        l1.ledger.owner(owner_id).leases[lease_id] = lease


def _settle(
    l1: L1, slots: dict[int, Slot], records: dict[Slot, SlotRecord], dropped: Dropped, now_s: float
) -> None:
    """Give every slot its state: by its record, and by the leases on it."""
    for owner in l1.ledger.owners.values():
        for lease in owner.leases.values():
            _apply(l1, lease, records)
    newest_last = sorted(
        (slot for slot, record in records.items() if record.ready),
        key=lambda slot: records[slot].sequence,
    )
    for slot in newest_last:
        _fill(l1, slot, records[slot])
        if not slot.users:
            l1.allocator.used_now((slot,))
    for slot, record in records.items():
        if not record.ready:
            _settle_incomplete(l1, slot, record, dropped, now_s)
    for slot in slots.values():
        if slot.state != FREE:
            continue
        if slot.users or slot.writers:  # deleted, and somebody reads or writes it still
            slot.state = DOOMED
            l1.allocator.occupy(slot)
        else:
            slot.slab.vacant += 1
            slot.slab.size_class.free.append(slot)
    l1.reservations.commits = max((record.sequence for record in records.values()), default=0)


def _apply(l1: L1, lease: Lease, records: dict[Slot, SlotRecord]) -> None:
    held = list(lease.slots)
    for position, slot in enumerate(held):
        assert slot is not None
        if lease.kind != LeaseKind.WRITE:
            slot.users += 1
            continue
        record = records.get(slot)
        if record is not None:
            lease.namespace = l1.namespaces[record.namespace_id]
        if record is not None and (record.ready or record.committed >> lease.shard & 1):
            held[position] = None  # the engine died between this commit and the lease's end
        else:
            slot.writers |= 1 << lease.shard
    lease.slots = held


def _fill(l1: L1, slot: Slot, record: SlotRecord) -> None:
    entry = l1.namespaces.entries[record.namespace_id]
    slot.key, slot.tenant, slot.namespace = record.key, record.tenant, entry
    slot.protected_until_s = 0.0
    if record.ready:
        slot.state, slot.index, slot.committed = READY, entry.ready, entry.all_shards
    else:
        slot.state, slot.index, slot.committed = INCOMPLETE, entry.incomplete, record.committed
    slot.index[slot.key] = slot
    l1.allocator.occupy(slot)


def _settle_incomplete(
    l1: L1, slot: Slot, record: SlotRecord, dropped: Dropped, now_s: float
) -> None:
    if slot.users or not (slot.writers or record.committed):
        dropped["unfinished"] += 1
        l1.state.clear_slot(slot.record)
        return
    _fill(l1, slot, record)
    if not slot.writers:
        l1.allocator.await_others(slot, now_s + UNFINISHED_PROTECTION_S)
