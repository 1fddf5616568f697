"""Where things are in the state file, and the header that says whose file it is."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from zlib import crc32

from typing_extensions import Buffer

from lmcache_mp.messages import SLOT_UNIT_BYTES

MAGIC = b"LMCMPST\x01"
HEADER_BYTES = 4096
NAMESPACE_BYTES = 1024
LEASE_BYTES = 1024
PAGE_BYTES = 16
SLOT_RECORD_BYTES = 128

_HEADER = struct.Struct("<8sQQQII16s40sI")  # magic, the fields of `Geometry`, crc


class StateFileMismatch(Exception):
    """The file is not this L1's: start cold. The message says why."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a state file and its segment agree on."""

    l1_bytes: int
    page_bytes: int
    segment_inode: int
    l1_id: bytes
    """16 random bytes; with another id, everything that was mapped and leased is gone."""
    boot_id: str
    namespaces: int = 2048
    """Namespaces that can be registered, and lease records (of 240 slots) that can be open."""
    leases: int = 4096

    @classmethod
    def from_header(cls, buffer: memoryview) -> Geometry:
        """That of a whole state file; raises `StateFileMismatch` if it cannot be believed."""
        geometry = cls.read(buffer)
        if len(buffer) != geometry.file_bytes:
            raise StateFileMismatch(
                f"the state file has {len(buffer)} bytes, not {geometry.file_bytes}"
            )
        return geometry

    @classmethod
    def read(cls, buffer: Buffer) -> Geometry:
        """What a header says, or `StateFileMismatch`."""
        buffer = memoryview(buffer)
        if len(buffer) < HEADER_BYTES:
            raise StateFileMismatch(
                f"the state file has {len(buffer)} bytes, its header alone {HEADER_BYTES}"
            )
        *fields, crc = _HEADER.unpack_from(buffer)
        magic, l1_bytes, page_bytes, inode, namespaces, leases, l1_id, boot = fields
        if magic != MAGIC:
            raise StateFileMismatch(
                f"the state file begins with {magic!r}, this version's with {MAGIC!r}"
            )
        if crc != crc32(_HEADER.pack(*fields, 0)):
            raise StateFileMismatch("the header of the state file fails its checksum")
        return cls(
            l1_bytes=l1_bytes,
            page_bytes=page_bytes,
            segment_inode=inode,
            l1_id=l1_id,
            boot_id=boot.rstrip(b"\0").decode(),
            namespaces=namespaces,
            leases=leases,
        )

    def to_header(self) -> bytes:
        """The header that says this."""
        sizes = (self.l1_bytes, self.page_bytes, self.segment_inode, self.namespaces, self.leases)
        fields = (MAGIC, *sizes, self.l1_id, self.boot_id.encode())
        return _HEADER.pack(*fields, crc32(_HEADER.pack(*fields, 0)))

    @property
    def pages(self) -> int:
        """Whole pages of the segment."""
        return self.l1_bytes // self.page_bytes

    @property
    def slots_per_page(self) -> int:
        """Of the smallest size there is."""
        return self.page_bytes // SLOT_UNIT_BYTES

    @property
    def pages_at(self) -> int:
        """Offset of the page records."""
        return HEADER_BYTES + self.namespaces * NAMESPACE_BYTES

    @property
    def leases_at(self) -> int:
        """Offset of the lease records."""
        end = self.pages_at + self.pages * PAGE_BYTES
        return -(-end // HEADER_BYTES) * HEADER_BYTES

    @property
    def slots_at(self) -> int:
        """Offset of the slot records."""
        return self.leases_at + self.leases * LEASE_BYTES

    @property
    def file_bytes(self) -> int:
        """Length of the state file, most of it a hole."""
        return self.slots_at + self.pages * self.slots_per_page * SLOT_RECORD_BYTES

    def slot_record(self, page: int, position: int) -> int:
        """Offset of the record of the slot at a position of the slab that begins at `page`."""
        return self.slots_at + (page * self.slots_per_page + position) * SLOT_RECORD_BYTES
