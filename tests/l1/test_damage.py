"""Whatever happened to the state file: an engine starts from it or refuses it whole, serves no slot
under another key, gives away none that a living client uses, and counts what it dropped.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmcache_mp.l1.adopt import AdoptionUnsafe, Dropped, adopt
from lmcache_mp.l1.check import check
from lmcache_mp.l1.geometry import (
    HEADER_BYTES,
    LEASE_BYTES,
    NAMESPACE_BYTES,
    PAGE_BYTES,
    SLOT_RECORD_BYTES,
    Geometry,
    StateFileMismatch,
)
from lmcache_mp.l1.slot import Slot
from lmcache_mp.l1.state_file import StateFile
from lmcache_mp.l1.tier import L1
from tests.l1.memory import geometry, prompt_keys
from tests.l1.test_adopt import LIVING, filled

BEFORE = filled()
IMAGE = bytes(BEFORE.state.buffer)
TRUTH = {slot.address: key for key, slot in BEFORE.namespaces[1].ready.items()}
SLOTS = [slot for slab in BEFORE.namespaces[1].size_class.slabs for slot in slab.slots]
RECORDED = [slot.record for slot in SLOTS if IMAGE[slot.record]]
SHAPE = geometry(4)
COUNTERS_AT = 1024
OWNER = b"living.........."

many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def flips(draw: st.DrawFn, begin: int, length: int) -> bytes:
    """The state file with one to three bits flipped in [begin, begin + length)."""
    image = bytearray(IMAGE)
    bits = st.integers(begin * 8, (begin + length) * 8 - 1)
    for bit in draw(st.sets(bits, min_size=1, max_size=3)):
        image[bit >> 3] ^= 1 << (bit & 7)
    return bytes(image)


def started(image: bytes, living: set[bytes] = LIVING) -> tuple[L1, Dropped]:
    """An engine's L1 over that state file; what it serves is right, and it works."""
    copy = memoryview(bytearray(image))
    l1 = L1(StateFile(copy, Geometry.from_header(copy)))
    dropped = adopt(l1, living, 100.0)
    for entry in l1.namespaces.entries.values():
        for key, slot in entry.ready.items():
            assert TRUTH[slot.address] == key
    assert check(l1) == []
    l1.tick(200.0)
    work(l1)
    return l1, dropped


def work(l1: L1) -> None:
    """Store, clear, and start once more: nothing that was damaged stands in the way."""
    l1.state.epoch = l1.state.epoch + 1
    entry = l1.namespaces.register(BEFORE.namespaces[1].namespace)
    owner = l1.ledger.owner(b"another.........")
    for shard in (0, 1):
        l1.prepare_store(owner, shard + 1, entry, prompt_keys(900, 2), shard, b"", 200.0)
        l1.commit_store(owner, shard + 1, None, 200.0)
    assert l1.lookup(entry, prompt_keys(900, 2)) == 2
    l1.clear(entry)
    again = L1(StateFile(memoryview(bytearray(l1.state.buffer)), l1.state.geometry))
    adopt(again, set(), 300.0)
    assert again.lookup(again.namespaces[entry.id], prompt_keys(900, 2)) == 0
    assert check(l1) == []


def leases(l1: L1) -> dict[int, int]:
    """How many slots each lease of the living client has."""
    return {i: len(lease.slots) for i, lease in l1.ledger.owners[OWNER].leases.items()}


HELD = {4: 2, 6: 3}

# --- the records, one kind after the other ---


@many
@given(image=flips(0, 96))
def test_a_damaged_header_is_refused_whole(image: bytes) -> None:
    with pytest.raises(StateFileMismatch, match=r"checksum|begins with"):
        started(image)


@many
@given(image=flips(COUNTERS_AT, HEADER_BYTES - COUNTERS_AT))
def test_damaged_counters_cost_nothing(image: bytes) -> None:
    l1, dropped = started(image)
    assert not dropped
    assert leases(l1) == HELD


@pytest.mark.parametrize("word", range(COUNTERS_AT, COUNTERS_AT + 32, 8))
@pytest.mark.parametrize("value", [bytes(8), b"\xff" * 8])
def test_counters_that_are_nonsense_cost_nothing(word: int, value: bytes) -> None:
    _, dropped = started(IMAGE[:word] + value + IMAGE[word + 8 :])
    assert not dropped


@many
@given(image=flips(HEADER_BYTES, NAMESPACE_BYTES))
def test_a_damaged_namespace_costs_its_chunks_and_no_lease(image: bytes) -> None:
    _, dropped = started(image)
    assert dropped.keys() <= {"damaged namespace", "unknown namespace", "cleared", "unfinished"}
    if dropped["damaged namespace"]:
        assert dropped["unknown namespace"] == len(RECORDED)


@many
@given(image=flips(SHAPE.pages_at, PAGE_BYTES))
def test_a_damaged_slab_means_a_new_l1_if_somebody_may_be_using_it(image: bytes) -> None:
    _, dropped = started(image, set())
    if not dropped:
        started(image)  # padding
        return
    assert dropped["damaged slab"] == 1
    with pytest.raises(AdoptionUnsafe, match=r"^damaged slab"):
        started(image)


@many
@given(data=st.data())
def test_a_damaged_lease_means_a_new_l1_if_any_client_lives(data: st.DataObject) -> None:
    entry = data.draw(st.sampled_from([e for e in range(SHAPE.leases) if _lease_byte(e)]))
    image = data.draw(flips(SHAPE.leases_at + entry * LEASE_BYTES, 72))
    _, dropped = started(image, set())
    if not dropped["damaged lease"]:
        assert leases(started(image)[0]) == HELD  # behind its last slot
        return
    with pytest.raises(AdoptionUnsafe, match=r"^damaged lease"):
        started(image)


def _lease_byte(entry: int) -> int:
    return IMAGE[SHAPE.leases_at + entry * LEASE_BYTES]


@many
@given(data=st.data())
def test_a_damaged_slot_costs_its_chunk_alone(data: st.DataObject) -> None:
    at = data.draw(st.sampled_from(RECORDED))
    l1, dropped = started(data.draw(flips(at, SLOT_RECORD_BYTES)))
    assert leases(l1) == HELD
    assert dropped.keys() <= {"damaged slot", "unfinished"}
    assert sum(dropped.values()) <= 1


@many
@given(at=st.sampled_from(RECORDED), bit=st.integers(48 * 8, 100 * 8 - 1))
def test_a_flipped_bit_of_key_origin_or_checksum_is_always_noticed(at: int, bit: int) -> None:
    image = bytearray(IMAGE)
    image[at + (bit >> 3)] ^= 1 << (bit & 7)
    l1, dropped = started(bytes(image))
    assert dropped == {"damaged slot": 1}
    assert leases(l1) == HELD


@many
@given(first=st.sampled_from(SLOTS), second=st.sampled_from(SLOTS))
def test_a_record_copied_to_another_slot_is_not_believed(first: Slot, second: Slot) -> None:
    one, two = first.record, second.record
    image = bytearray(IMAGE)
    image[one : one + SLOT_RECORD_BYTES] = IMAGE[two : two + SLOT_RECORD_BYTES]
    started(bytes(image))


@many
@given(data=st.data())
def test_bits_flipped_anywhere_end_in_a_start_or_a_refusal(data: st.DataObject) -> None:
    image = data.draw(flips(0, len(IMAGE)))
    try:
        l1, _ = started(image)
    except (StateFileMismatch, AdoptionUnsafe):
        return
    assert leases(l1) == HELD


@pytest.mark.parametrize("size", [0, 100, 5000, len(IMAGE) - 1])
def test_a_truncated_file_is_refused(size: int) -> None:
    with pytest.raises(StateFileMismatch, match=f"has {size} bytes"):
        started(IMAGE[:size])


def test_a_file_of_another_version_is_refused_by_name() -> None:
    with pytest.raises(StateFileMismatch, match=r"begins with b'LMCMPST\\x02'"):
        started(IMAGE[:7] + b"\x02" + IMAGE[8:])
