"""A slot's record in the state file: what stands where in it, and how a slab's are read.

0     state       cleared first, set last
8     sequence    order of commits, for the eviction order after a restart
16    committed   two bit sets of 16 bytes; a shard counts if both say so
48    origin      namespace, generation, tenant
64    key
96    crc         over origin and key, and the slot's address
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from zlib import crc32

from lmcache_mp.l1.geometry import SLOT_RECORD_BYTES
from lmcache_mp.l1.slot import Slot

EMPTY = 0x00
INCOMPLETE, READY = 0x35, 0xCA
"""State bytes: no flipped bit turns one into another."""

SEQUENCE_AT = 8
COMMITTED_AT, COMMITTED_AGAIN_AT = 16, 32
ORIGIN = struct.Struct("<II8s")  # namespace, generation, tenant
RESERVED = struct.Struct("<32x16s32sI")  # no shards committed, origin, key, crc

_WHOLE = struct.Struct("<B7xQ16s16s16s32sI28x")
_CREDIBLE_SEQUENCE = (1 << 48) - 1  # no checksum covers it, and later ones count on from it
_NO_TENANT = bytes(8)


class SlotRecord(NamedTuple):
    """A slot record as found at the start."""

    ready: bool
    """Else incomplete."""
    namespace_id: int
    generation: int
    key: bytes
    tenant: bytes
    committed: int
    """Bit set of shards; of a chunk that is not ready."""
    sequence: int


def read_slots(
    records: memoryview, slots: Sequence[Slot]
) -> Iterator[tuple[Slot, SlotRecord | None]]:
    """The slots that are not empty, with their records, or None where one is damaged.

    `records` are theirs, one behind the other.
    """
    origins: dict[bytes, tuple[int, int, int, bytes]] = {}
    of_all = _WHOLE.iter_unpack(records[: len(slots) * SLOT_RECORD_BYTES])
    for slot, (state, sequence, once, again, origin, key, crc) in zip(slots, of_all, strict=True):
        if state == EMPTY:
            continue
        known = origins.get(origin)
        if known is None:
            namespace_id, generation, tenant = ORIGIN.unpack(origin)
            tenant = b"" if tenant == _NO_TENANT else tenant
            known = origins[origin] = (crc32(origin), namespace_id, generation, tenant)
        seed, namespace_id, generation, tenant = known
        if state not in (INCOMPLETE, READY) or crc != crc32(key, seed ^ slot.address):
            yield slot, None
            continue
        ready = state == READY
        committed = 0 if ready else _bits(once) & _bits(again)
        sequence &= _CREDIBLE_SEQUENCE
        yield slot, SlotRecord(ready, namespace_id, generation, key, tenant, committed, sequence)


def _bits(copy: bytes) -> int:
    return int.from_bytes(copy, "little")
