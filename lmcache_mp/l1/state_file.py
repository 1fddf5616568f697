"""The state file: what a restarted engine needs to know, written before anything depends on it.

Layout, all little-endian, over any writable buffer (a mapped file; a bytearray in tests):

    header        4 KiB   magic, version, geometry, ids, CRC; then the mutable counters
    namespaces    1 KiB each     state, length, generation, CRC, msgpack
    pages         16 B a page    state, pages, slot units, CRC       (first page of each slab)
    leases        1 KiB each     state, kind, shard, count, lease id, owner, CRC, slot addresses
    slots         128 B a slot   see `slot_record`; sparse, backed when a slab is made

Every record has one state byte: cleared first, set last. Stores to one process's mapping become
visible in order, so a kill between two of them leaves a record that is absent, never one that is
torn. What is mutable beside it (a shard's bit, a generation) is a single aligned store.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

from lmcache_mp.l1.geometry import (
    HEADER_BYTES,
    LEASE_BYTES,
    NAMESPACE_BYTES,
    PAGE_BYTES,
    SLOT_RECORD_BYTES,
    Geometry,
)
from lmcache_mp.l1.slot import Slot
from lmcache_mp.l1.slot_record import (
    COMMITTED_AGAIN_AT,
    COMMITTED_AT,
    EMPTY,
    INCOMPLETE,
    ORIGIN,
    READY,
    RESERVED,
    SEQUENCE_AT,
    SlotRecord,
    read_slots,
)

VALID = 0xA7
"""State byte of records other than slots', where it is not EMPTY."""

_POPULATED = 1024  # mutable fields, each an aligned 8-byte word
_EPOCH = 1040
_GENERATION = 1048

_NAMESPACE = struct.Struct("<BxHIII")  # state, length, generation, the same again, crc
NAMESPACE_BLOB_BYTES = NAMESPACE_BYTES - _NAMESPACE.size
_PAGE = struct.Struct("<BxxxIII")  # state, pages, slot units, crc
_LEASE = struct.Struct("<BBHHHIQ16sI")  # state, kind, shard, part, parts, count, id, owner, crc
_LEASE_SLOTS = 64
LEASE_SLOTS_PER_ENTRY = (LEASE_BYTES - _LEASE_SLOTS) // 4


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """One entry of the lease table as found at the start; a long lease has several."""

    entry: int
    kind: int
    shard: int
    part: int
    parts: int
    lease_id: int
    owner: bytes
    addresses: array[int]


class StateFile:
    """Typed access to the records. It decides nothing; `L1` and `adopt` do."""

    def __init__(
        self,
        buffer: memoryview,
        geometry: Geometry,
        back: Callable[[int, int], None] | None = None,
    ) -> None:
        """`back(offset, length)` makes the filesystem reserve room, or raises `OSError`."""
        self.geometry = geometry
        self.buffer = buffer
        self._words = buffer[: len(buffer) // 8 * 8].cast("Q")
        self._back = back

    def release(self) -> None:
        """Let go of the buffer."""
        self._words.release()
        self.buffer.release()

    # --- header ---

    def format(self) -> None:
        """Write the header of a new, zeroed file."""
        header = self.geometry.to_header()
        self.buffer[: len(header)] = header

    @property
    def populated_bytes(self) -> int:
        """How much of the segment is backed by memory; 0 if that cannot be told."""
        value, again = self._words[_POPULATED >> 3], self._words[(_POPULATED >> 3) + 1]
        return value if value == again and value <= self.geometry.l1_bytes else 0

    @populated_bytes.setter
    def populated_bytes(self, value: int) -> None:
        self._words[_POPULATED >> 3] = value
        self._words[(_POPULATED >> 3) + 1] = value

    @property
    def epoch(self) -> int:
        """The engine's incarnation that wrote here last; there is always one after it."""
        return self._words[_EPOCH >> 3] & (1 << 63) - 1

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._words[_EPOCH >> 3] = value

    def next_generation(self) -> int:
        """A generation that no namespace of this L1 has, and no record says."""
        generation = (self._words[_GENERATION >> 3] + 1) & 0xFFFFFFFF
        self._words[_GENERATION >> 3] = generation
        return generation

    def set_last_generation(self, generation: int) -> None:
        """Count on from there."""
        self._words[_GENERATION >> 3] = generation

    # --- namespaces ---

    def put_namespace(self, namespace_id: int, generation: int, blob: bytes) -> None:
        """Record a namespace under its id, from 1 on."""
        at = HEADER_BYTES + (namespace_id - 1) * NAMESPACE_BYTES
        self.buffer[at] = EMPTY
        self.buffer[at + _NAMESPACE.size : at + _NAMESPACE.size + len(blob)] = blob
        crc = crc32(blob)
        _NAMESPACE.pack_into(self.buffer, at, 0, len(blob), generation, generation, crc)
        self.buffer[at] = VALID

    def set_generation(self, namespace_id: int, generation: int) -> None:
        """From now on, slots of another generation of the namespace are of no account."""
        at = HEADER_BYTES + (namespace_id - 1) * NAMESPACE_BYTES + 4
        copies = self.buffer[at : at + 8].cast("I")
        copies[0] = generation
        copies[1] = generation

    def drop_namespace(self, namespace_id: int) -> None:
        """Forget a namespace."""
        self.buffer[HEADER_BYTES + (namespace_id - 1) * NAMESPACE_BYTES] = EMPTY

    def namespaces(self) -> Iterator[tuple[int, int, bytes | None]]:
        """`(id, generation, blob)` of all; the blob is None where it fails its checksum."""
        for namespace_id in range(1, self.geometry.namespaces + 1):
            at = HEADER_BYTES + (namespace_id - 1) * NAMESPACE_BYTES
            state, length, *generations, crc = _NAMESPACE.unpack_from(self.buffer, at)
            if state != EMPTY:
                blob = bytes(self.buffer[at + _NAMESPACE.size :][:length])
                yield (
                    namespace_id,
                    max(generations),
                    blob if state == VALID and crc32(blob) == crc else None,
                )

    # --- pages ---

    def put_slab(self, page: int, pages: int, slot_units: int, slots: int) -> None:
        """Record a slab; raises `OSError` if its slots' records find no room."""
        first = self.geometry.slot_record(page, 0)
        length = slots * SLOT_RECORD_BYTES
        if self._back is not None:
            self._back(first, length)
        self.buffer[first : first + length] = bytes(length)
        at = self.geometry.pages_at + page * PAGE_BYTES
        crc = crc32(struct.pack("<III", page, pages, slot_units))
        _PAGE.pack_into(self.buffer, at, 0, pages, slot_units, crc)
        self.buffer[at] = VALID

    def drop_slab(self, page: int) -> None:
        """Forget a slab; its slots' records must be clear."""
        self.buffer[self.geometry.pages_at + page * PAGE_BYTES] = EMPTY

    def slabs(self) -> Iterator[tuple[int, int, int]]:
        """`(first page, pages, slot units)` of all; pages is 0 where it fails its checksum."""
        for page in range(self.geometry.pages):
            at = self.geometry.pages_at + page * PAGE_BYTES
            state, pages, slot_units, crc = _PAGE.unpack_from(self.buffer, at)
            if state != EMPTY:
                good = state == VALID and crc == crc32(struct.pack("<III", page, pages, slot_units))
                yield page, pages if good else 0, slot_units

    # --- slots ---

    def put_slots(
        self, slots: Iterable[Slot], namespace_id: int, generation: int, tenant: bytes
    ) -> None:
        """Record that slots are reserved for their keys."""
        origin = ORIGIN.pack(namespace_id, generation, tenant)
        seed = crc32(origin)
        buffer, pack_into = self.buffer, RESERVED.pack_into
        for slot in slots:
            at, key = slot.record, slot.key
            pack_into(buffer, at + COMMITTED_AT, origin, key, crc32(key, seed ^ slot.address))
            buffer[at] = INCOMPLETE

    def commit_shard(self, at: int, shard: int) -> None:
        """One shard of several is whole."""
        offset, bit = at + COMMITTED_AT + (shard >> 3), 1 << (shard & 7)
        self.buffer[offset] |= bit
        self.buffer[offset + COMMITTED_AGAIN_AT - COMMITTED_AT] |= bit

    def set_ready(self, slots: Iterable[Slot], sequence: int) -> None:
        """The chunks are whole. The first is numbered `sequence`, the next one less, and so on."""
        buffer, words = self.buffer, self._words
        for slot in slots:
            at = slot.record
            words[(at + SEQUENCE_AT) >> 3] = sequence
            buffer[at] = READY
            sequence -= 1

    def clear_slot(self, at: int) -> None:
        """The slot holds nothing."""
        self.buffer[at] = EMPTY

    def clear_slots(self, slots: Iterable[Slot]) -> None:
        """The slots hold nothing."""
        buffer = self.buffer
        for slot in slots:
            buffer[slot.record] = EMPTY

    def slot_empty(self, at: int) -> bool:
        """Whether nothing is recorded."""
        return self.buffer[at] == EMPTY

    def slots(self, first: int, slots: Sequence[Slot]) -> Iterator[tuple[Slot, SlotRecord | None]]:
        """Those that are not empty, and their records or None; the first's is at `first`."""
        return read_slots(self.buffer[first : first + len(slots) * SLOT_RECORD_BYTES], slots)

    def slot(self, slot: Slot) -> SlotRecord | None:
        """A slot's record; None if it is empty or damaged."""
        return next((record for _, record in self.slots(slot.record, (slot,))), None)

    # --- leases ---

    def put_lease(
        self, entry: int, kind: int, shard: int, part: tuple[int, int], lease_id: int,
        owner: bytes, slots: bytes,
    ) -> None:  # fmt: skip
        """Record one part of several of a lease, before the lease is granted."""
        at = self.geometry.leases_at + entry * LEASE_BYTES
        self.buffer[at + _LEASE_SLOTS : at + _LEASE_SLOTS + len(slots)] = slots
        fields = (kind, shard, *part, len(slots) // 4, lease_id, owner)
        crc = crc32(slots, crc32(_LEASE.pack(0, *fields, 0)))
        _LEASE.pack_into(self.buffer, at, 0, *fields, crc)
        self.buffer[at] = VALID

    def clear_lease(self, entry: int) -> None:
        """The entry is free."""
        self.buffer[self.geometry.leases_at + entry * LEASE_BYTES] = EMPTY

    def lease_active(self, entry: int) -> bool:
        """Whether the entry records a lease."""
        return self.buffer[self.geometry.leases_at + entry * LEASE_BYTES] == VALID

    def leases(self) -> Iterator[LeaseRecord | int]:
        """All recorded leases; the number of the entry alone where it fails its checksum."""
        for entry in range(self.geometry.leases):
            at = self.geometry.leases_at + entry * LEASE_BYTES
            state, *fields, crc = _LEASE.unpack_from(self.buffer, at)
            kind, shard, part, parts, count, lease_id, owner = fields
            if state == EMPTY:
                continue
            slots = bytes(self.buffer[at + _LEASE_SLOTS : at + LEASE_BYTES][: count * 4])
            if state != VALID or crc32(slots, crc32(_LEASE.pack(0, *fields, 0))) != crc:
                yield entry
            else:
                yield LeaseRecord(
                    entry, kind, shard, part, parts, lease_id, owner, array("I", slots)
                )
