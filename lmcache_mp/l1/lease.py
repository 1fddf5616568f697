"""Leases: a client's right to bytes. They end when given back, or when the owner is proven gone."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmcache_mp.l1.slot import Slot
from lmcache_mp.namespace import MAX_SHARDS

if TYPE_CHECKING:
    from lmcache_mp.l1.index import NamespaceEntry


ALL_SHARDS = 255
"""Instead of a shard: whoever writes it writes whole chunks, all shards of them."""


def shard_bits(shard: int) -> int:
    """The set of shards that a lease on `shard` writes, as it stands in `Slot.writers`."""
    return (1 << MAX_SHARDS) - 1 if shard == ALL_SHARDS else 1 << shard


class LeaseKind(enum.IntEnum):
    """What a lease is for."""

    WRITE = 1
    """Reserved slots that its owner fills."""
    READ = 2
    """Slots that its owner reads."""
    PIN = 3
    """Slots that its owner wants kept."""
    HOLD = 4
    """As PIN, but a wish: it touches no bytes, so it ends by the clock and is not recorded."""


@dataclass(slots=True, eq=False)
class Lease:
    """Slots in the hands of one owner."""

    id: int
    """The call id of the request that asked for it."""
    kind: LeaseKind
    slots: Sequence[Slot | None]
    """None in a WRITE lease that outlived the engine: that one was committed before."""
    shard: int = 0
    """The shard that a WRITE lease writes, or `ALL_SHARDS`."""
    namespace: NamespaceEntry | None = None
    """Of a WRITE lease; None if all of its chunks were deleted before a restart."""
    entries: list[int] = field(default_factory=list)
    """Its records in the state file."""


@dataclass(slots=True, eq=False)
class Owner:
    """A client that can hold leases."""

    id: bytes = field(repr=False)
    """16 bytes, chosen by the client at random: whoever knows them could pretend to be it."""
    leases: dict[int, Lease] = field(default_factory=dict)
    holds: int = 0
    """How many of them are holds."""
    records: int = 0
    """How many records in the state file the others take."""

    @property
    def name(self) -> str:
        """A digest of its id, which may be shown."""
        return hashlib.sha256(self.id).hexdigest()[:12]
