"""Who holds what: owners and their leases, recorded before they are granted."""

from __future__ import annotations

from collections.abc import Sequence

from lmcache_mp.errors import BadLease, LeaseNotFound, LimitReached
from lmcache_mp.l1.lease import Lease, LeaseKind, Owner
from lmcache_mp.l1.slot import Slot
from lmcache_mp.l1.state_file import LEASE_SLOTS_PER_ENTRY, StateFile

_ENTRY_BYTES = LEASE_SLOTS_PER_ENTRY * 4


def entries_for(slots: int) -> int:
    """How many records a lease on so many slots takes."""
    return -(-slots // LEASE_SLOTS_PER_ENTRY)


class Ledger:
    """All owners. Slots' own counts (`users`, `writers`) are the tier's business."""

    def __init__(self, state: StateFile, max_leases: int) -> None:
        """`max_leases`: of one owner at a time, holds and pins included."""
        self._state = state
        self.max_leases = max_leases
        self.free_entries = list(range(state.geometry.leases - 1, -1, -1))
        self.owners: dict[bytes, Owner] = {}

    def owner(self, owner_id: bytes) -> Owner:
        """The owner of that id, known or new."""
        found = self.owners.get(owner_id)
        if found is None:
            found = self.owners[owner_id] = Owner(owner_id)
        return found

    def require_room(self, owner: Owner, lease_id: int, slots: int) -> None:
        """Check, before anything changes, that a lease with records of so many slots could be
        granted.

        Nobody gets more records than are left for others then: one owner alone gets half of them.
        """
        if lease_id in owner.leases:
            raise BadLease(
                f"lease {lease_id} is open already: a call id may be used once", lease_id=lease_id
            )
        if len(owner.leases) >= self.max_leases:
            raise LimitReached(
                f"the client has {len(owner.leases)} leases, holds and pins, and may have"
                f" {self.max_leases} (max_leases): give some back sooner",
                limit=self.max_leases,
            )
        free = len(self.free_entries) - entries_for(slots)
        if slots and owner.records + entries_for(slots) > free:
            limit = self._state.geometry.leases
            raise LimitReached(
                f"the client's leases take {owner.records} of the server's {limit} lease records,"
                f" {len(self.free_entries)} are free, and nobody gets more of them than others are"
                " left: give leases back sooner",
                limit=limit,
                free=len(self.free_entries),
            )

    def grant(
        self,
        owner: Owner,
        lease_id: int,
        kind: LeaseKind,
        slots: Sequence[Slot | None],
        packed: bytes,
        shard: int = 0,
    ) -> Lease:
        """Record a lease; `packed` are the slots' addresses. Holds are not recorded."""
        lease = Lease(lease_id, kind, slots, shard)
        if kind != LeaseKind.HOLD:
            parts = entries_for(len(slots))
            for part in range(parts):
                entry = self.free_entries.pop()
                held = packed[part * _ENTRY_BYTES : (part + 1) * _ENTRY_BYTES]
                self._state.put_lease(entry, kind, shard, (part, parts), lease_id, owner.id, held)
                lease.entries.append(entry)
        self.restore(owner, lease)
        return lease

    def restore(self, owner: Owner, lease: Lease) -> None:
        """The owner has a lease that is recorded already."""
        owner.leases[lease.id] = lease
        owner.records += len(lease.entries)

    def find(self, owner: Owner, lease_id: int) -> Lease:
        """The owner's lease of that id, or `LeaseNotFound`."""
        lease = owner.leases.get(lease_id)
        if lease is None:
            raise LeaseNotFound(
                f"client {owner.name} holds no lease {lease_id}: it is another client's, has"
                f" ended, or was never granted (it holds {len(owner.leases)} others)",
                lease_id=lease_id,
            )
        return lease

    def end(self, owner: Owner, lease: Lease) -> None:
        """Strike a lease from the records."""
        del owner.leases[lease.id]
        owner.records -= len(lease.entries)
        for entry in lease.entries:
            self._state.clear_lease(entry)
        self.free_entries += lease.entries
