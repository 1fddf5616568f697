"""The writing half of L1: reserve, commit, abort."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from operator import attrgetter

from lmcache_mp.errors import BadLease, BadShard
from lmcache_mp.l1.allocator import Allocator
from lmcache_mp.l1.counters import Counters
from lmcache_mp.l1.index import NamespaceEntry
from lmcache_mp.l1.lease import ALL_SHARDS, Lease, LeaseKind, Owner, shard_bits
from lmcache_mp.l1.ledger import Ledger
from lmcache_mp.l1.slot import INCOMPLETE, READY, Slot
from lmcache_mp.l1.state_file import StateFile
from lmcache_mp.messages import StoreGrant

UNFINISHED_PROTECTION_S = 10.0
"""How long a chunk waits for its other ranks after the last commit of one; without it, ranks one
step apart never meet in a full cache."""

OnReady = Callable[[NamespaceEntry, list[bytes]], None]

_address = attrgetter("address")


class Reservations:
    """Slots between the moment a client may write them and the moment they are hits."""

    def __init__(
        self, state: StateFile, allocator: Allocator, ledger: Ledger, counters: Counters
    ) -> None:
        self._state = state
        self._allocator = allocator
        self._ledger = ledger
        self._counters = counters
        self.commits = 0
        """Counts up over restarts: the eviction order of adopted chunks."""
        self.on_ready: OnReady | None = None
        """Told which chunks have just become hits."""

    def prepare(
        self, owner: Owner, lease_id: int, entry: NamespaceEntry, names: tuple[bytes, ...],
        shard: int, tenant: bytes, now_s: float,
    ) -> StoreGrant:  # fmt: skip
        """Reserve the shard's missing chunks, first to last, evicting if need be.

        What is here of the prompt counts as used and is not evicted for the rest of it.
        """
        if not 0 <= shard < entry.namespace.num_shards and shard != ALL_SHARDS:
            raise BadShard(
                f"shard {shard} of a namespace with {entry.namespace.num_shards}: must be from 0 to"
                f" {entry.namespace.num_shards - 1}",
                shard=shard,
                num_shards=entry.namespace.num_shards,
            )
        self._ledger.require_room(owner, lease_id, len(names))
        bit = shard_bits(shard)
        missing, here, joined = self._sorted_out(entry, names, bit)
        slots = self._reserve(entry, missing, here, bit, tenant, now_s)
        no_room = len(missing) - len(slots)
        self._counters.no_room_chunks += no_room
        indices = list(missing.values())[: len(slots)]
        if joined:
            granted = sorted((joined | dict(zip(indices, slots, strict=True))).items())
            indices, slots = [index for index, _ in granted], [slot for _, slot in granted]
        packed = array("I", map(_address, slots)).tobytes()
        if slots:
            lease = self._ledger.grant(owner, lease_id, LeaseKind.WRITE, slots, packed, shard)
            lease.namespace = entry
        return StoreGrant(array("I", indices).tobytes(), packed, no_room)

    def commit(self, owner: Owner, lease_id: int, written: bytes | None, now_s: float) -> int:
        """Publish what was written (positions in the lease; None: all), abort the rest.

        Returns how many chunks were taken: those cleared or deleted meanwhile are not.
        """
        lease = self._ledger.find(owner, lease_id)
        if lease.kind != LeaseKind.WRITE:
            raise BadLease(
                f"lease {lease_id} is a {lease.kind.name.lower()} lease: nothing to commit",
                lease_id=lease_id,
            )
        positions = _positions(written, len(lease.slots))
        entry = lease.namespace
        awaited = None if entry is None else entry.incomplete
        taken = 0
        whole: list[Slot] = []
        for position, slot in enumerate(lease.slots):
            if slot is None:  # committed before a restart, and the answer was lost
                taken += 1
            elif position in positions and slot.index is awaited:
                taken += 1
                at_once = slot.namespace.all_shards == 1 or lease.shard == ALL_SHARDS
                if at_once or self._is_whole(slot, lease.shard, now_s):
                    whole.append(slot)
            else:
                self._abort_shard(slot, shard_bits(lease.shard))
        arrived = [slot.key for slot in whole]
        if entry is not None:
            self._publish(entry, whole)
            if lease.shard != ALL_SHARDS:  # those come from L2
                self._counters.stored_chunks += taken
                self._counters.stored_bytes += taken * entry.namespace.shard_bytes
        self._ledger.end(owner, lease)
        if self.on_ready is not None and entry is not None and arrived:
            self.on_ready(entry, arrived)  # last of all: it may lease what has just arrived
        return taken

    def abort(self, lease: Lease) -> None:
        """Undo what a WRITE lease reserved."""
        for slot in lease.slots:
            if slot is not None:
                self._abort_shard(slot, shard_bits(lease.shard))

    def _sorted_out(
        self, entry: NamespaceEntry, names: tuple[bytes, ...], bit: int
    ) -> tuple[dict[bytes, int], list[Slot], dict[int, Slot]]:
        """The keys that are missing, with their index; the slots of those that are here; and those
        of other ranks' chunks, by index, that this shard is to complete.
        """
        ready, incomplete = entry.ready, entry.incomplete
        missing = dict(zip(names, range(len(names)), strict=True))
        is_new = ready.keys().isdisjoint(names) and incomplete.keys().isdisjoint(names)
        if is_new and len(missing) == len(names):
            return missing, [], {}
        missing = {}
        here = entry.prefix(names)
        joined: dict[int, Slot] = {}
        for index, key in enumerate(names[len(here) :], len(here)):
            if (slot := ready.get(key)) is not None:
                here.append(slot)
            elif (slot := incomplete.get(key)) is None:
                missing.setdefault(key, index)
            elif not (slot.writers | slot.committed) & bit:
                if not slot.writers:
                    self._allocator.written_again(slot)
                slot.writers |= bit
                joined[index] = slot
        return missing, here, joined

    def _reserve(
        self,
        entry: NamespaceEntry,
        missing: dict[bytes, int],
        here: list[Slot],
        bit: int,
        tenant: bytes,
        now_s: float,
    ) -> list[Slot]:
        """New slots, for as many of the missing keys as there is room."""
        idle = [slot for slot in dict.fromkeys(reversed(here)) if not slot.users]
        entry.size_class.order.remove(idle)
        for slot in idle:
            slot.users = 1
        slots = self._allocator.allocate(entry.size_class, len(missing), now_s)
        for slot in idle:
            slot.users = 0
        self._allocator.used_now(idle)
        incomplete = entry.incomplete
        for slot, key in zip(slots, missing, strict=False):
            slot.state = INCOMPLETE
            slot.key = key
            slot.namespace = entry
            slot.tenant = tenant
            slot.index = incomplete
            slot.writers = bit
            slot.protected_until_s = 0.0
        incomplete.update(zip(missing, slots, strict=False))
        self._state.put_slots(slots, entry.id, entry.generation, tenant)
        return slots

    def _is_whole(self, slot: Slot, shard: int, now_s: float) -> bool:
        """Take a shard's commit; whether it was the last one."""
        bit = 1 << shard
        slot.writers &= ~bit
        slot.committed |= bit
        if slot.committed == slot.namespace.all_shards:
            return True
        self._state.commit_shard(slot.record, shard)
        if not slot.writers:
            self._allocator.await_others(slot, now_s + UNFINISHED_PROTECTION_S)
        return False

    def _publish(self, entry: NamespaceEntry, slots: list[Slot]) -> None:
        """Chunks become hits."""
        self.commits += len(slots)
        self._state.set_ready(slots, self.commits)
        incomplete, ready, all_shards = entry.incomplete, entry.ready, entry.all_shards
        for slot in slots:
            key = slot.key
            del incomplete[key]
            ready[key] = slot
            slot.index = ready
            slot.state = READY
            slot.writers = 0
            slot.committed = all_shards
        slots.reverse()
        self._allocator.used_now(slots)

    def _abort_shard(self, slot: Slot, bit: int) -> None:
        """A lease that wrote a shard of the slot ends without it."""
        self._counters.aborted_chunks += 1
        slot.writers &= ~bit
        if slot.writers:
            return
        if slot.state == INCOMPLETE and slot.committed:
            self._allocator.await_others(slot, slot.protected_until_s)
            return
        if slot.state == INCOMPLETE:
            self._allocator.forget(slot)
        if not slot.users:
            self._allocator.free(slot)


def _positions(written: bytes | None, slots: int) -> range | set[int]:
    """Which positions of a lease are to be committed."""
    if written is None:
        return range(slots)
    if len(written) % 4:
        raise BadLease(f"{len(written)} bytes of positions are no whole number of uint32 values")
    positions = set(array("I", written))
    if positions and max(positions) >= slots:
        raise BadLease(
            f"position {max(positions)} is beyond the {slots} slots of the lease", slots=slots
        )
    return positions
