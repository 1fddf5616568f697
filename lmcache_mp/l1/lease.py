"""Leases: a client's right to bytes. They end when given back, or when the owner is proven gone."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmcache_mp.l1.slot import Slot

if TYPE_CHECKING:
    from lmcache_mp.l1.index import NamespaceEntry


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
    """The shard that a WRITE lease writes."""
    namespace: NamespaceEntry | None = None
    """Of a WRITE lease; None if all of its chunks were deleted before a restart."""
    entries: list[int] = field(default_factory=list)
    """Its records in the state file."""


@dataclass(slots=True, eq=False)
class Owner:
    """A client that can hold leases."""

    id: bytes
    """16 bytes, chosen by the client at random."""
    leases: dict[int, Lease] = field(default_factory=dict)
    holds: int = 0
    """How many of them are holds."""
