"""Whatever happens to an object or its envelope, it is rejected; and only then."""

from __future__ import annotations

import struct

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from lmcache_mp.l2 import ENVELOPE_BYTES
from lmcache_mp.tiering.envelope import MAGIC, VERSION, Rejected, seal, verify

KEY, NAMESPACE = b"k" * 32, b"n" * 16
FIELDS_BYTES = 88
"""Magic to seal: the part of the page that is not zeros."""

KEYS = st.binary(min_size=32, max_size=32)
NAMESPACES = st.binary(min_size=16, max_size=16)
CHUNKS = st.binary(max_size=3000)


def sealed(key: bytes, namespace: bytes, chunk: bytes) -> bytearray:
    page = bytearray(ENVELOPE_BYTES)
    seal(memoryview(page), key, namespace, memoryview(chunk))
    return page


def check(page: bytes | bytearray, key: bytes, namespace: bytes, chunk: bytes | bytearray) -> None:
    verify(memoryview(page), key, namespace, memoryview(chunk))


def resealed(page: bytearray) -> bytearray:
    """As somebody would have written it who means what it says."""
    struct.pack_into("<Q", page, 80, xxhash.xxh3_64_intdigest(page[:80]))
    return page


@given(KEYS, NAMESPACES, CHUNKS)
def test_what_was_sealed_is_accepted(key: bytes, namespace: bytes, chunk: bytes) -> None:
    page = sealed(key, namespace, chunk)
    assert page[:8] == MAGIC
    assert not any(page[FIELDS_BYTES:])
    check(page, key, namespace, chunk)


@given(CHUNKS)
def test_a_page_that_was_used_before_is_sealed_whole(chunk: bytes) -> None:
    page = bytearray(b"\xff" * ENVELOPE_BYTES)
    seal(memoryview(page), KEY, NAMESPACE, memoryview(chunk))
    assert page == sealed(KEY, NAMESPACE, chunk)


def test_every_flipped_bit_of_the_fields_is_rejected() -> None:
    chunk = bytes(range(256))
    page = sealed(KEY, NAMESPACE, chunk)
    for bit in range(8 * FIELDS_BYTES):
        page[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Rejected):
            check(page, KEY, NAMESPACE, chunk)
        page[bit // 8] ^= 1 << bit % 8
    check(page, KEY, NAMESPACE, chunk)


@given(st.binary(min_size=1, max_size=3000), st.data())
def test_every_flipped_bit_of_the_chunk_is_rejected(chunk: bytes, data: st.DataObject) -> None:
    page, changed = sealed(KEY, NAMESPACE, chunk), bytearray(chunk)
    bit = data.draw(st.integers(0, 8 * len(chunk) - 1))
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Rejected, match="its bytes do not match their checksum"):
        check(page, KEY, NAMESPACE, changed)


@given(CHUNKS, CHUNKS)
def test_another_chunk_is_rejected(chunk: bytes, other: bytes) -> None:
    page = sealed(KEY, NAMESPACE, chunk)
    if chunk == other:
        check(page, KEY, NAMESPACE, other)
    else:
        with pytest.raises(Rejected):
            check(page, KEY, NAMESPACE, other)


@given(st.binary(min_size=1, max_size=3000), st.data())
def test_a_truncated_object_is_rejected_wherever_it_ends(chunk: bytes, data: st.DataObject) -> None:
    whole = bytes(sealed(KEY, NAMESPACE, chunk)) + chunk
    kept = data.draw(st.integers(0, ENVELOPE_BYTES + len(chunk) - 1))
    torn = whole[:kept].ljust(
        len(whole), b"\0"
    )  # as a file is that was grown before it was written
    if torn != whole:  # zeros at the end may be lost: they are the same
        with pytest.raises(Rejected):
            check(torn[:ENVELOPE_BYTES], KEY, NAMESPACE, torn[ENVELOPE_BYTES:])
    if kept > ENVELOPE_BYTES:
        with pytest.raises(Rejected, match=f"{len(chunk)} bytes, not {kept - ENVELOPE_BYTES}"):
            check(whole[:ENVELOPE_BYTES], KEY, NAMESPACE, whole[ENVELOPE_BYTES:kept])


@given(st.binary(max_size=200), CHUNKS)
def test_a_foreign_page_is_rejected(begin: bytes, chunk: bytes) -> None:
    for page in (begin, MAGIC + begin):
        with pytest.raises(Rejected):
            check(page.ljust(ENVELOPE_BYTES, b"\0"), KEY, NAMESPACE, chunk)


@given(KEYS.filter(lambda key: key != KEY), CHUNKS)
def test_the_object_of_another_key_is_rejected(key: bytes, chunk: bytes) -> None:
    with pytest.raises(Rejected, match=f"it is of the chunk {key.hex()[:16]}"):
        check(sealed(key, NAMESPACE, chunk), KEY, NAMESPACE, chunk)


@given(NAMESPACES.filter(lambda namespace: namespace != NAMESPACE), CHUNKS)
def test_the_object_of_another_namespace_is_rejected(namespace: bytes, chunk: bytes) -> None:
    with pytest.raises(Rejected, match=f"it is of the namespace {namespace.hex()}"):
        check(sealed(KEY, namespace, chunk), KEY, NAMESPACE, chunk)


@pytest.mark.parametrize(
    ("at", "field", "sentence"),
    [
        (0, b"LMCMPOBK", "it begins with b'LMCMPOBK', not with b'LMCMPOBJ'"),
        (8, struct.pack("<I", VERSION + 1), "its envelope is of version 2, this server writes 1"),
        (15, b"\1", "its envelope is of version 72057594037927937, this server writes 1"),
        (64, struct.pack("<Q", 4), "its chunk has 4 bytes, not 5"),
        (64, struct.pack("<Q", 1 << 63), "its chunk has 9223372036854775808 bytes, not 5"),
        (72, bytes(8), "its bytes do not match their checksum"),
    ],
)
def test_each_field_is_looked_at_even_if_the_seal_is_right(
    at: int, field: bytes, sentence: str
) -> None:
    page = sealed(KEY, NAMESPACE, b"chunk")
    page[at : at + len(field)] = field
    with pytest.raises(Rejected) as caught:
        check(resealed(page), KEY, NAMESPACE, b"chunk")
    assert str(caught.value) == sentence


def test_a_damaged_seal_says_so() -> None:
    page = sealed(KEY, NAMESPACE, b"chunk")
    page[80] ^= 1
    with pytest.raises(Rejected, match="its envelope is damaged"):
        check(page, KEY, NAMESPACE, b"chunk")
