"""A slot: a chunk-sized place in L1, and what is in it at present."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from typing_extensions import override

if TYPE_CHECKING:
    from lmcache_mp.l1.index import NamespaceEntry
    from lmcache_mp.l1.slab import Slab


class State(enum.IntEnum):
    """Where a slot stands.

    FREE -> INCOMPLETE -> READY -> FREE, the way of a chunk; -> DOOMED from INCOMPLETE or READY when
    the chunk is deleted while somebody still reads or writes its bytes, FREE once nobody does.
    """

    FREE = 0
    INCOMPLETE = 1
    """Reserved; some shards may be committed. Never a hit."""
    READY = 2
    """Whole; a hit as long as it stands in its namespace's index."""
    DOOMED = 3
    """No hit any more and never again; waits for its last lease to end."""


FREE, INCOMPLETE, READY, DOOMED = State
NOWHERE: dict[bytes, Slot] = {}
"""The index of what is in none."""


class Slot:
    """Made when its slab is carved, and used for one chunk after the other.

    Invariant: every READY slot that nobody uses stands in its size class's eviction order; of those
    that are used, some that are only being copied to L2; no other does.
    """

    __slots__ = (
        "address",
        "committed",
        "index",
        "key",
        "mark",
        "namespace",
        "protected_until_s",
        "record",
        "slab",
        "state",
        "tenant",
        "users",
        "writers",
    )

    key: bytes
    namespace: NamespaceEntry
    tenant: bytes
    protected_until_s: float
    """Until when an INCOMPLETE chunk that nobody writes waits for its other ranks."""

    def __init__(self, slab: Slab, address: int, record: int) -> None:
        self.slab = slab
        self.address = address
        """Offset in the segment, in `SLOT_UNIT_BYTES`."""
        self.record = record
        """Offset of its record in the state file."""
        self.state = FREE
        self.index = NOWHERE
        """The dict of its namespace that holds it; a cleared namespace has another by now."""
        self.mark = 0
        """Of the eviction order that it stands in; 0 if it stands in none."""
        self.users = 0
        """Leases that keep it: reads, pins and holds."""
        self.writers = 0
        """Bit set of the shards that a living lease writes."""
        self.committed = 0
        """Bit set of the shards that are whole."""

    def evictable(self, now_s: float) -> bool:
        """Whether the slot could be taken for another chunk (or is free anyway)."""
        if self.state == READY:
            return not self.users
        if self.state == INCOMPLETE:
            return not self.writers and self.protected_until_s <= now_s
        return self.state == FREE

    @override
    def __repr__(self) -> str:
        return (
            f"<Slot {self.address} {self.state.name} users={self.users} writers={self.writers:b}"
            f" committed={self.committed:b}>"
        )
