"""L1, the verbs: lookup, store, retrieve, pin, touch, delete, clear. Time is passed in.

Promises, in the order in which the code keeps them:

1. A chunk becomes a hit when its last shard is committed, never before.
2. Bytes that a lease covers are never given to another chunk.
3. What is granted is in the state file before the answer leaves.
"""

from __future__ import annotations

import functools
import heapq
import struct
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import takewhile

from lmcache_mp.errors import BadKeys
from lmcache_mp.l1.allocator import Allocator
from lmcache_mp.l1.counters import Counters
from lmcache_mp.l1.index import Catalogue, Cleared, NamespaceEntry
from lmcache_mp.l1.lease import ALL_SHARDS, Lease, LeaseKind, Owner
from lmcache_mp.l1.ledger import Ledger
from lmcache_mp.l1.reservations import Reservations
from lmcache_mp.l1.slot import DOOMED, INCOMPLETE, NOWHERE, READY, Slot
from lmcache_mp.l1.state_file import StateFile
from lmcache_mp.messages import KEY_BYTES, MAX_KEYS, StoreGrant

DEVICE_GRACE_S = 1.0
"""How long the slots of a dead writer stay untouched: a device may still be copying."""

MAX_HOLDS = 1024
"""Open holds of one owner."""

SWEPT_AT_ONCE = 512
"""Cleared slots freed in one tick."""


class L1:
    """The memory tier of one server. Not thread-safe."""

    def __init__(self, state: StateFile, *, policy: str = "lru", max_leases: int = 1 << 20) -> None:
        """`max_leases`: of one owner at a time, holds and pins included."""
        self.state = state
        self.policy = policy
        self.counters = Counters()
        self.allocator = Allocator(state, policy)
        self.ledger = Ledger(state, max_leases)
        self.namespaces = Catalogue(state, self.allocator)
        self.reservations = Reservations(state, self.allocator, self.ledger, self.counters)
        self.cleared = Cleared()
        self.dying: deque[tuple[float, Owner, int]] = deque()
        """`(when, owner, lease id)` of dead owners' write leases."""
        self.holds: list[tuple[float, bytes, int]] = []
        """Heap of `(when, owner id, lease id)`."""

    # --- reading ---

    def lookup(self, entry: NamespaceEntry, keys: bytes) -> int:
        """How many chunks, from the first on, are here. Changes nothing."""
        names = split_keys(keys)
        found = len(list(takewhile(entry.ready.__contains__, names)))
        self._count_lookup(len(names), found)
        return found

    def acquire(
        self, owner: Owner, lease_id: int, kind: LeaseKind, entry: NamespaceEntry, keys: bytes
    ) -> bytes:
        """Lease the longest prefix that is here (READ, PIN or HOLD); returns its slots' addresses.

        Where nothing is here there is no lease to end.
        """
        slots = entry.prefix(split_keys(keys))
        packed = self.lease(owner, lease_id, kind, slots)
        if kind == LeaseKind.READ:
            self.counters.retrieved_chunks += len(slots)
            self.counters.retrieved_bytes += len(slots) * entry.namespace.shard_bytes
        return packed

    def lease(
        self,
        owner: Owner,
        lease_id: int,
        kind: LeaseKind,
        slots: Sequence[Slot],
        *,
        is_use: bool = True,
    ) -> bytes:
        """Lease READY slots of one class; returns their addresses. None: there is no lease.

        Unless that `is_use` they keep their place in the order, and will be evicted after it when
        their turn comes.
        """
        self.ledger.require_room(owner, lease_id, 0 if kind == LeaseKind.HOLD else len(slots))
        if not slots:
            return b""
        self._use(slots, is_use=is_use)
        packed = array("I", [slot.address for slot in slots]).tobytes()
        self.ledger.grant(owner, lease_id, kind, slots, packed)
        return packed

    def keep(self, owner: Owner, lease_id: int, slots: Sequence[Slot]) -> None:
        """Add READY slots of one class to a hold without end, a new one if there is none yet.

        For the server's own needs: no bound applies.
        """
        lease = owner.leases.get(lease_id)
        if lease is None:
            lease = self.ledger.grant(owner, lease_id, LeaseKind.HOLD, [], b"")
            owner.holds += 1
        if slots:
            self._use(slots, is_use=True)
            assert isinstance(lease.slots, list)
            lease.slots.extend(slots)

    def hold(
        self, owner: Owner, lease_id: int, entry: NamespaceEntry, keys: bytes, until_s: float
    ) -> int:
        """Keep the longest prefix until then, or until released; returns how many chunks.

        A hold is a wish: an owner with too many of them gets the count alone.
        """
        if owner.holds >= MAX_HOLDS or len(owner.leases) >= self.ledger.max_leases:
            return self.lookup(entry, keys)
        held = len(self.acquire(owner, lease_id, LeaseKind.HOLD, entry, keys)) // 4
        if held:
            owner.holds += 1
            heapq.heappush(self.holds, (until_s, owner.id, lease_id))
        self._count_lookup(len(keys) // KEY_BYTES, held)
        return held

    def touch(self, entry: NamespaceEntry, keys: bytes) -> int:
        """Mark the longest prefix as just used; returns how many chunks."""
        slots = entry.prefix(split_keys(keys))
        idle = [slot for slot in dict.fromkeys(reversed(slots)) if not slot.users]
        entry.size_class.order.remove(idle)
        self.allocator.used_now(idle)
        return len(slots)

    # --- writing ---

    def prepare_store(
        self, owner: Owner, lease_id: int, entry: NamespaceEntry, keys: bytes, shard: int,
        tenant: bytes, now_s: float,
    ) -> StoreGrant:  # fmt: skip
        """Reserve slots for the shard's missing chunks; see `Reservations.prepare`."""
        return self.reservations.prepare(
            owner, lease_id, entry, split_keys(keys), shard, tenant, now_s
        )

    def commit_store(self, owner: Owner, lease_id: int, written: bytes | None, now_s: float) -> int:
        """Publish what was written; see `Reservations.commit`."""
        return self.reservations.commit(owner, lease_id, written, now_s)

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
            if lease.kind == LeaseKind.WRITE and lease.shard != ALL_SHARDS:  # no device loads
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
        self._end_holds(now_s)
        for _ in range(SWEPT_AT_ONCE):
            slot = self.cleared.pop()
            if slot is None:
                break
            self._drop(slot)

    # --- dropping ---

    def delete(self, entry: NamespaceEntry, keys: bytes) -> int:
        """Forget these chunks; returns how many were here."""
        deleted = 0
        for key in split_keys(keys):
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
        entry.generation = self.state.next_generation()
        self.state.set_generation(entry.id, entry.generation)
        self.cleared.dicts += [entry.ready, entry.incomplete]
        entry.ready, entry.incomplete = {}, {}
        return cleared

    # --- inside ---

    def _count_lookup(self, asked: int, found: int) -> None:
        self.counters.lookup_chunks += asked
        self.counters.hit_chunks += found

    def _end(self, owner: Owner, lease: Lease) -> None:
        if lease.kind == LeaseKind.WRITE:
            self.reservations.abort(lease)
        else:
            self._unuse(lease.slots)
        if lease.kind == LeaseKind.HOLD:
            owner.holds -= 1
        self.ledger.end(owner, lease)

    def _end_holds(self, now_s: float) -> None:
        """End the holds that are due; now and then, forget those that were given back."""
        owners = self.ledger.owners
        if len(self.holds) > 2 * sum(owner.holds for owner in owners.values()) + MAX_HOLDS:
            self.holds = [h for h in self.holds if h[1] in owners and h[2] in owners[h[1]].leases]
            heapq.heapify(self.holds)
        while self.holds and self.holds[0][0] <= now_s:
            _, owner_id, lease_id = heapq.heappop(self.holds)
            holder = owners.get(owner_id)
            if holder is not None and lease_id in holder.leases:
                self._end(holder, holder.leases[lease_id])

    def _use(self, slots: Sequence[Slot], *, is_use: bool) -> None:
        """One more lease on each; a prompt of no honest client has a slot twice."""
        idle: dict[Slot, None] = {}
        for slot in slots:
            if is_use and slot.mark:
                idle[slot] = None
            slot.users += 1
        slots[0].slab.size_class.order.remove(list(idle))

    def _unuse(self, slots: Sequence[Slot | None]) -> None:
        idle: list[Slot] = []
        for slot in reversed(slots):
            assert slot is not None  # only in WRITE leases
            slot.users -= 1
            if slot.users:
                continue
            if slot.state == READY:
                if not slot.mark:
                    idle.append(slot)
            elif not slot.writers:
                self.allocator.free(slot)
        self.allocator.used_now(idle)

    def _drop(self, slot: Slot) -> None:
        """A chunk that is in no index any more: free its slot, or doom it while it is leased."""
        if slot.mark:
            slot.slab.size_class.order.remove((slot,))
        elif slot.state == INCOMPLETE and not slot.writers:
            self.allocator.written_again(slot)
        self.state.clear_slot(slot.record)
        slot.state = DOOMED
        slot.index = NOWHERE
        if not slot.users and not slot.writers:
            self.allocator.free(slot)


@functools.lru_cache(maxsize=512)
def _splitter(count: int) -> struct.Struct:
    return struct.Struct(f"{KEY_BYTES}s" * count)


def split_keys(keys: bytes) -> tuple[bytes, ...]:
    """The keys in a buffer. (One unpack takes a fifth of the time of as many slices.)"""
    count, rest = divmod(len(keys), KEY_BYTES)
    if rest:
        raise BadKeys(
            f"{len(keys)} bytes of keys are no whole number of {KEY_BYTES}-byte keys",
            bytes=len(keys),
            key_bytes=KEY_BYTES,
        )
    if count > MAX_KEYS:
        raise BadKeys(
            f"{count} keys in one message are more than {MAX_KEYS}: ask in parts, or use larger"
            " chunks",
            keys=count,
            limit=MAX_KEYS,
        )
    return _splitter(count).unpack(keys)
