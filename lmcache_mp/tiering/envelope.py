"""What stands before every object's bytes, so that nothing torn, foreign or changed is ever served.

    [0:8) magic  [8:16) version  [16:48) key  [48:64) namespace digest
    [64:72) length of the chunk in bytes  [72:80) xxh3-64 of the chunk
    [80:88) xxh3-64 of [0:80), little-endian; zeros up to a page

The checksum is xxHash's XXH3 (Yann Collet), which runs at memory speed.
"""

from __future__ import annotations

import struct

import xxhash

from lmcache_mp.l2 import ENVELOPE_BYTES

MAGIC = b"LMCMPOBJ"
VERSION = 1

_FIELDS = struct.Struct("<8sQ32s16sQQ")
_SEAL = struct.Struct("<Q")
_REST = bytes(ENVELOPE_BYTES - _FIELDS.size - _SEAL.size)


class Rejected(Exception):
    """An object is not what its name says; the sentence says how."""


def seal(page: memoryview, key: bytes, namespace: bytes, chunk: memoryview) -> None:
    """Fill a page with the envelope of a chunk; `namespace` is its digest."""
    assert len(page) == ENVELOPE_BYTES
    checksum = xxhash.xxh3_64_intdigest(chunk)
    _FIELDS.pack_into(page, 0, MAGIC, VERSION, key, namespace, len(chunk), checksum)
    _SEAL.pack_into(page, _FIELDS.size, xxhash.xxh3_64_intdigest(page[: _FIELDS.size]))
    page[_FIELDS.size + _SEAL.size :] = _REST


def verify(page: memoryview, key: bytes, namespace: bytes, chunk: memoryview) -> None:
    """Raise `Rejected` unless the page is the envelope of just this chunk."""
    magic, version, its_key, its_namespace, length, checksum = _FIELDS.unpack_from(page)
    if magic != MAGIC:
        raise Rejected(f"it begins with {magic!r}, not with {MAGIC!r}")
    (seal_of_page,) = _SEAL.unpack_from(page, _FIELDS.size)
    if seal_of_page != xxhash.xxh3_64_intdigest(page[: _FIELDS.size]):
        raise Rejected("its envelope is damaged")
    if version != VERSION:
        raise Rejected(f"its envelope is of version {version}, this server writes {VERSION}")
    if its_key != key:
        raise Rejected(f"it is of the chunk {its_key.hex()[:16]}")
    if its_namespace != namespace:
        raise Rejected(f"it is of the namespace {its_namespace.hex()}")
    if length != len(chunk):
        raise Rejected(f"its chunk has {length} bytes, not {len(chunk)}")
    if checksum != xxhash.xxh3_64_intdigest(chunk):
        raise Rejected("its bytes do not match their checksum")
