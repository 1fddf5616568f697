"""L1, the verbs: lookup, store, retrieve, pin, touch, delete, clear. Time is passed in.

Promises, in the order in which the code keeps them:
1. A chunk becomes a hit when its last shard is committed, never before.
2. Bytes that a lease covers are never given to another chunk.
3. What is granted is in the state file before the answer leaves.
"""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Iterable, Sequence

from lmcache_mp.errors import BadKeys, BadLease, BadShard
from lmcache_mp.l1.allocator import Allocator
from lmcache_mp.l1.counters import Counters
from lmcache_mp.l1.index import Catalogue, Cleared, NamespaceEntry
from lmcache_mp.l1.lease import Lease, LeaseKind, Owner
from lmcache_mp.l1.ledger import Ledger
from lmcache_mp.l1.slot import DOOMED, FREE, INCOMPLETE, READY, Slot
from lmcache_mp.l1.state_file import StateFile
from lmcache_mp.messages import KEY_BYTES, StoreGrant

UNFINISHED_PROTECTION_S = 10.0
"""How long a chunk waits for its other ranks after the last commit of one; without it, ranks one
step apart never meet in a full cache."""

DEVICE_GRACE_S = 1.0
"""How long the slots of a dead writer stay untouched: a device may still be copying."""

SWEPT_AT_ONCE = 512
"""Cleared slots freed in one tick."""


class L1:
    """The memory tier of one server. Not thread-safe."""

    def __init__(self, state: StateFile, *, policy: str = "lru") -> None:
        self.state = state
        self.policy = policy
        self.allocator = Allocator(state, policy, self._forget)
        self.ledger = Ledger(state)
        self.namespaces = Catalogue(state, self.allocator)
        self.counters = Counters()
        self.cleared = Cleared()
        self.dying: deque[tuple[float, Owner, int]] = deque()
        """`(when, owner, lease id)` of dead owners' write leases."""
        self.holds: list[tuple[float, bytes, int]] = []
        """Heap of `(when, owner id, lease id)`."""
        self.commits = 0

    # --- reading ---

    def lookup(self, entry: NamespaceEntry, keys: bytes) -> int:
        """How many chunks, from the first on, are here. Changes nothing."""
        ready = entry.ready
        found = 0
        for at in range(0, _checked(keys), KEY_BYTES):
            if keys[at : at + KEY_BYTES] not in ready:
                break
            found += 1
        self._count_lookup(keys, found)
        return found

    def acquire(
        self, owner: Owner, lease_id: int, kind: LeaseKind, entry: NamespaceEntry, keys: bytes
    ) -> bytes:
        """Lease the longest prefix that is here (READ, PIN or HOLD); returns its slots' addresses.

        Where nothing is here there is no lease to end.
        """
        slots = self._prefix(entry, keys)
        self.ledger.require_room(owner, lease_id, len(slots))
        if not slots:
            return b""
        for slot in slots:
            if not slot.users:
                slot.slab.size_class.order.remove(slot)
            slot.users += 1
        packed = array("I", [slot.address for slot in slots]).tobytes()
        self.ledger.grant(owner, lease_id, kind, slots, packed)
        if kind == LeaseKind.READ:
            self.counters.retrieved_chunks += len(slots)
            self.counters.retrieved_bytes += len(slots) * entry.namespace.shard_bytes
        return packed

    def hold(
        self, owner: Owner, lease_id: int, entry: NamespaceEntry, keys: bytes, until_s: float
    ) -> int:
        """Keep the longest prefix until then, or until released; returns how many chunks."""
        held = len(self.acquire(owner, lease_id, LeaseKind.HOLD, entry, keys)) // 4
        if held:
            heapq.heappush(self.holds, (until_s, owner.id, lease_id))
        self._count_lookup(keys, held)
        return held

    def touch(self, entry: NamespaceEntry, keys: bytes) -> int:
        """Mark the longest prefix as just used; returns how many chunks."""
        slots = self._prefix(entry, keys)
        for slot in reversed(slots):
            if not slot.users:
                slot.slab.size_class.order.remove(slot)
                self.allocator.used_now(slot)
        return len(slots)

    # --- writing ---

    def prepare_store(
        self, owner: Owner, lease_id: int, entry: NamespaceEntry, keys: bytes, shard: int,
        tenant: bytes, now_s: float,
    ) -> StoreGrant:  # fmt: skip
        """Reserve slots for the shard's missing chunks, first to last, evicting if need be.

        What is here of the prompt counts as used and is not evicted for the rest of it.
        """
        if not 0 <= shard < entry.namespace.num_shards:
            raise BadShard(
                f"shard {shard} of a namespace with {entry.namespace.num_shards}: must be from 0 to"
                f" {entry.namespace.num_shards - 1}",
                shard=shard,
                num_shards=entry.namespace.num_shards,
            )
        self.ledger.require_room(owner, lease_id, _checked(keys) // KEY_BYTES)
        bit = 1 << shard
        seed = self.state.slot_seed(entry.id, entry.generation, tenant)
        here: list[Slot] = []
        indices: list[int] = []
        slots: list[Slot] = []
        no_room = 0
        for index in range(len(keys) // KEY_BYTES):
            key = keys[index * KEY_BYTES : (index + 1) * KEY_BYTES]
            slot = entry.ready.get(key)
            if slot is not None:
                if not slot.users:
                    slot.slab.size_class.order.remove(slot)
                slot.users += 1
                here.append(slot)
                continue
            slot = entry.incomplete.get(key)
            if slot is None:
                slot = self.allocator.allocate(entry.size_class, now_s) if not no_room else None
                if slot is None:
                    no_room += 1
                    continue
                self._reserve(slot, entry, key, tenant, seed)
            elif (slot.writers | slot.committed) & bit:
                continue
            elif not slot.writers:
                self.allocator.written_again(slot)
            slot.writers |= bit
            indices.append(index)
            slots.append(slot)
        self._unuse(here)
        self.counters.no_room_chunks += no_room
        packed = array("I", [slot.address for slot in slots]).tobytes()
        if slots:
            lease = self.ledger.grant(owner, lease_id, LeaseKind.WRITE, slots, packed, shard)
            lease.shard_bytes = entry.namespace.shard_bytes
        return StoreGrant(array("I", indices).tobytes(), packed, no_room)

    def commit_store(self, owner: Owner, lease_id: int, written: bytes | None, now_s: float) -> int:
        """Publish what was written (positions in the lease; None: all), abort the rest.

        Returns how many chunks were taken: those cleared or deleted meanwhile are not.
        """
        lease = self.ledger.find(owner, lease_id)
        if lease.kind != LeaseKind.WRITE:
            raise BadLease(
                f"lease {lease_id} is a {lease.kind.name.lower()} lease: nothing to commit",
                lease_id=lease_id,
            )
        positions = _positions(written, len(lease.slots))
        shard, bit, taken = lease.shard, 1 << lease.shard, 0
        whole: list[Slot] = []
        for position, slot in enumerate(lease.slots):
            if slot is None:  # committed before a restart, and the answer was lost
                taken += 1
            elif position in positions and self._awaited(slot):
                self._commit_shard(slot, shard, now_s, whole)
                taken += 1
            else:
                self._abort_shard(slot, bit)
        for slot in reversed(whole):
            self.allocator.used_now(slot)
        self.ledger.end(owner, lease)
        self.counters.stored_chunks += taken
        self.counters.stored_bytes += taken * lease.shard_bytes
        return taken

    # --- ends of leases ---

    def release(self, owner: Owner, lease_id: int) -> None:
        """End a lease of any kind, or raise `LeaseNotFound`; an uncommitted store is aborted."""
        self._end(owner, self.ledger.find(owner, lease_id))

    def keep_only(self, owner: Owner, lease_ids: Iterable[int]) -> list[int]:
        """End all of an owner's leases but these; returns those of them that it has."""
        wanted = set(lease_ids)
        for lease in list(owner.leases.values()):
            if lease.id not in wanted:
                self._end(owner, lease)
        return sorted(owner.leases)

    def owner_ended(self, owner: Owner) -> None:
        """The owner said goodbye: all its leases end now."""
        self.keep_only(owner, ())
        self.ledger.owners.pop(owner.id, None)

    def owner_died(self, owner: Owner, now_s: float) -> None:
        """The owner is proven gone: its reads end now, its stores after the device's grace."""
        for lease in list(owner.leases.values()):
            if lease.kind == LeaseKind.WRITE:
                self.dying.append((now_s + DEVICE_GRACE_S, owner, lease.id))
            else:
                self._end(owner, lease)
        if not owner.leases:
            self.ledger.owners.pop(owner.id, None)

    def tick(self, now_s: float) -> None:
        """What is due by the clock: dead writers' slots, holds, and a part of what was cleared."""
        while self.dying and self.dying[0][0] <= now_s:
            _, owner, lease_id = self.dying.popleft()
            self._end(owner, owner.leases[lease_id])
            if not owner.leases:
                self.ledger.owners.pop(owner.id, None)
        while self.holds and self.holds[0][0] <= now_s:
            _, owner_id, lease_id = heapq.heappop(self.holds)
            holder = self.ledger.owners.get(owner_id)
            if holder is not None and lease_id in holder.leases:
                self._end(holder, holder.leases[lease_id])
        for _ in range(SWEPT_AT_ONCE):
            slot = self.cleared.pop()
            if slot is None:
                break
            self._drop(slot)

    # --- dropping ---

    def delete(self, entry: NamespaceEntry, keys: bytes) -> int:
        """Forget these chunks; returns how many were here."""
        deleted = 0
        for at in range(0, _checked(keys), KEY_BYTES):
            key = keys[at : at + KEY_BYTES]
            slot = entry.ready.pop(key, None)
            if slot is not None:
                deleted += 1
            else:
                slot = entry.incomplete.pop(key, None)
            if slot is not None:
                self._drop(slot)
        return deleted

    def clear(self, entry: NamespaceEntry) -> int:
        """Forget all chunks of a namespace, in O(1); returns how many were hits."""
        cleared = len(entry.ready)
        entry.generation += 1
        self.state.set_generation(entry.id, entry.generation)
        self.cleared.dicts += [entry.ready, entry.incomplete]
        entry.ready, entry.incomplete = {}, {}
        return cleared

    # --- inside ---

    def _count_lookup(self, keys: bytes, found: int) -> None:
        self.counters.lookup_chunks += len(keys) // KEY_BYTES
        self.counters.hit_chunks += found

    def _prefix(self, entry: NamespaceEntry, keys: bytes) -> list[Slot]:
        get = entry.ready.get
        slots = []
        for at in range(0, _checked(keys), KEY_BYTES):
            slot = get(keys[at : at + KEY_BYTES])
            if slot is None:
                break
            slots.append(slot)
        return slots

    def _reserve(
        self, slot: Slot, entry: NamespaceEntry, key: bytes, tenant: bytes, seed: int
    ) -> None:
        slot.state = INCOMPLETE
        slot.key = key
        slot.namespace = entry
        slot.tenant = tenant
        slot.index = entry.incomplete
        entry.incomplete[key] = slot
        if entry.namespace.num_shards > 1:
            self.state.clear_shards(slot.record)
        self.state.put_slot(
            slot.record, entry.id, entry.generation, slot.address, key, tenant, seed
        )

    @staticmethod
    def _awaited(slot: Slot) -> bool:
        """Whether a chunk that is being written still has a place in its namespace."""
        return slot.state == INCOMPLETE and slot.index is slot.namespace.incomplete

    def _commit_shard(self, slot: Slot, shard: int, now_s: float, whole: list[Slot]) -> None:
        entry = slot.namespace
        slot.writers &= ~(1 << shard)
        slot.committed |= 1 << shard
        if slot.committed == entry.all_shards:
            self.commits += 1
            self.state.set_ready(slot.record, self.commits)
            slot.state = READY
            del entry.incomplete[slot.key]
            entry.ready[slot.key] = slot
            slot.index = entry.ready
            whole.append(slot)
            return
        self.state.commit_shard(slot.record, shard)
        if not slot.writers:
            self.allocator.await_others(slot, now_s + UNFINISHED_PROTECTION_S)

    def _abort_shard(self, slot: Slot, bit: int) -> None:
        """A lease that wrote a shard of the slot ends without it."""
        self.counters.aborted_chunks += 1
        slot.writers &= ~bit
        if slot.writers:
            return
        if slot.state == INCOMPLETE and slot.committed:
            self.allocator.await_others(slot, slot.protected_until_s)
            return
        if slot.state == INCOMPLETE:
            self._forget(slot)
        self._free_if_unused(slot)

    def _end(self, owner: Owner, lease: Lease) -> None:
        if lease.kind == LeaseKind.WRITE:
            for slot in lease.slots:
                if slot is not None:
                    self._abort_shard(slot, 1 << lease.shard)
        else:
            self._unuse(lease.slots)
        self.ledger.end(owner, lease)

    def _unuse(self, slots: Sequence[Slot | None]) -> None:
        """Leases on these ended; last to first, so that a prompt's head stays youngest."""
        for slot in reversed(slots):
            if slot is None:
                continue
            slot.users -= 1
            if slot.users:
                continue
            if slot.state == READY:
                self.allocator.used_now(slot)
            else:
                self._free_if_unused(slot)

    def _drop(self, slot: Slot) -> None:
        """A chunk that is in no index any more: free its slot, or doom it while it is leased."""
        if slot.state == READY and not slot.users:
            slot.slab.size_class.order.remove(slot)
        elif slot.state == INCOMPLETE and not slot.writers:
            self.allocator.written_again(slot)
        self.state.clear_slot(slot.record)
        slot.state = DOOMED
        self._free_if_unused(slot)

    def _free_if_unused(self, slot: Slot) -> None:
        if not slot.users and not slot.writers and slot.state != FREE:
            self.allocator.free(slot)

    def _forget(self, slot: Slot) -> None:
        """Take a chunk out of index and records."""
        self.state.clear_slot(slot.record)
        slot.index.pop(slot.key, None)


def _checked(keys: bytes) -> int:
    """The length of a keys buffer that holds whole keys."""
    if len(keys) % KEY_BYTES:
        raise BadKeys(
            f"{len(keys)} bytes of keys are no whole number of {KEY_BYTES}-byte keys",
            bytes=len(keys),
            key_bytes=KEY_BYTES,
        )
    return len(keys)


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
