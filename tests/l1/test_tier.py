from __future__ import annotations

import gc
import itertools
from array import array

import pytest

from lmcache_mp.errors import (
    BadKeys,
    BadLease,
    BadShard,
    ChunkTooLarge,
    LeaseNotFound,
    NamespaceConflict,
    NotRegistered,
)
from lmcache_mp.l1.adopt import adopt
from lmcache_mp.l1.check import check
from lmcache_mp.l1.index import NamespaceEntry
from lmcache_mp.l1.lease import LeaseKind, Owner
from lmcache_mp.l1.reservations import UNFINISHED_PROTECTION_S
from lmcache_mp.l1.tier import L1
from lmcache_mp.messages import StoreGrant
from lmcache_mp.namespace import Namespace
from tests.l1.memory import PAGE_BYTES, after_crash, new_l1

call_ids = itertools.count(1)


def space(l1: L1, units: int = 1, num_shards: int = 1, model: str = "m") -> NamespaceEntry:
    shard_bytes = units * 4096 // num_shards
    namespace = Namespace(model=model, dtype="u8", shard_bytes=shard_bytes, num_shards=num_shards)
    return l1.namespaces.register(namespace)


def keys(*names: str) -> bytes:
    return b"".join(name.encode().ljust(32, b".") for name in names)


def owner(l1: L1, name: str = "owner") -> Owner:
    return l1.ledger.owner(name.encode().ljust(16, b"."))


def prepare(
    l1: L1, entry: NamespaceEntry, wanted: bytes, shard: int = 0, now_s: float = 0.0, who: str = "o"
) -> tuple[int, StoreGrant]:
    lease_id = next(call_ids)
    grant = l1.prepare_store(owner(l1, who), lease_id, entry, wanted, shard, b"", now_s)
    return lease_id, grant


def store(l1: L1, entry: NamespaceEntry, wanted: bytes, shard: int = 0, now_s: float = 0.0) -> int:
    lease_id, grant = prepare(l1, entry, wanted, shard, now_s)
    if grant.slots:
        l1.commit_store(owner(l1, "o"), lease_id, None, now_s)
    return grant.no_room_chunks


def here(l1: L1, entry: NamespaceEntry, *names: str) -> list[str]:
    return [name for name in names if l1.lookup(entry, keys(name))]


def test_a_chunk_is_a_hit_after_its_commit_and_not_before() -> None:
    l1 = new_l1(2)
    entry = space(l1)
    lease_id, grant = prepare(l1, entry, keys("a", "b"))
    assert array("I", grant.indices).tolist() == [0, 1]
    assert l1.lookup(entry, keys("a", "b")) == 0
    assert l1.commit_store(owner(l1, "o"), lease_id, None, 0.0) == 2
    assert l1.lookup(entry, keys("a", "b")) == 2
    assert check(l1) == []


def test_a_commit_publishes_what_was_written_and_aborts_the_rest() -> None:
    l1 = new_l1(2)
    entry = space(l1)
    lease_id, _ = prepare(l1, entry, keys("a", "b", "c"))
    written = array("I", [0, 2]).tobytes()
    assert l1.commit_store(owner(l1, "o"), lease_id, written, 0.0) == 2
    assert here(l1, entry, "a", "b", "c") == ["a", "c"]
    assert l1.allocator.used_units == 2


def test_a_chunk_is_ready_when_every_rank_has_committed_its_shard() -> None:
    l1 = new_l1(2)
    entry = space(l1, units=2, num_shards=2)
    store(l1, entry, keys("a"), shard=1)
    assert l1.lookup(entry, keys("a")) == 0
    store(l1, entry, keys("a"), shard=0)
    assert l1.lookup(entry, keys("a")) == 1


def test_what_another_writes_or_has_written_is_not_offered_again() -> None:
    l1 = new_l1(2)
    entry = space(l1)
    prepare(l1, entry, keys("a"))
    _, grant = prepare(l1, entry, keys("a", "b"), who="other")
    assert array("I", grant.indices).tolist() == [1]


def test_a_full_l1_evicts_the_least_recently_used_and_a_prompts_tail_before_its_head() -> None:
    l1 = new_l1(1)  # room for four
    entry = space(l1)
    store(l1, entry, keys("a1", "a2"))
    store(l1, entry, keys("b1", "b2"))
    l1.touch(entry, keys("a1", "a2"))
    store(l1, entry, keys("c"))
    assert here(l1, entry, "a1", "a2", "b1", "b2", "c") == ["a1", "a2", "b1", "c"]
    store(l1, entry, keys("d"))
    assert here(l1, entry, "a1", "a2", "b1", "b2", "c", "d") == ["a1", "a2", "c", "d"]
    store(l1, entry, keys("e"))
    assert here(l1, entry, "a1", "a2", "c", "d", "e") == ["a1", "c", "d", "e"]


def test_a_store_does_not_evict_the_prefix_it_extends() -> None:
    l1 = new_l1(1)
    entry = space(l1)
    store(l1, entry, keys("a", "b", "c"))
    assert store(l1, entry, keys("a", "b", "c", "d", "e")) == 1
    assert l1.lookup(entry, keys("a", "b", "c", "d", "e")) == 4


def test_a_store_larger_than_what_can_be_freed_says_how_much_found_no_room() -> None:
    l1 = new_l1(1)
    entry = space(l1)
    store(l1, entry, keys("x"))
    l1.acquire(owner(l1), next(call_ids), LeaseKind.PIN, entry, keys("x"))
    _, grant = prepare(l1, entry, keys(*"abcdef"))
    assert len(grant.slots) // 4 == 3
    assert grant.no_room_chunks == 3
    assert l1.lookup(entry, keys("x")) == 1


def test_leased_and_pinned_chunks_outlive_any_pressure() -> None:
    l1 = new_l1(1)
    entry = space(l1)
    store(l1, entry, keys("a", "b"))
    for kind, name in ((LeaseKind.READ, "a"), (LeaseKind.PIN, "b")):
        assert l1.acquire(owner(l1), next(call_ids), kind, entry, keys(name))
    for name in "cdefgh":
        store(l1, entry, keys(name))
    assert here(l1, entry, "a", "b") == ["a", "b"]


def test_a_hold_keeps_until_its_time_is_over() -> None:
    l1 = new_l1(1)
    entry = space(l1)
    store(l1, entry, keys("a"))
    assert l1.hold(owner(l1), next(call_ids), entry, keys("a"), until_s=5.0) == 1
    store(l1, entry, keys(*"bcdef"))
    assert here(l1, entry, "a") == ["a"]
    l1.tick(5.0)
    assert not owner(l1).leases
    store(l1, entry, keys(*"ghij"))
    assert here(l1, entry, "a") == []


def test_an_unfinished_chunk_waits_for_its_other_ranks_and_then_goes_first() -> None:
    l1 = new_l1(1)
    entry = space(l1, units=1, num_shards=2)
    store(l1, entry, keys("half"), shard=0, now_s=0.0)
    for shard in (0, 1):
        store(l1, entry, keys(*"abc"), shard=shard, now_s=1.0)
    lease_id, grant = prepare(l1, entry, keys("d"), now_s=2.0)
    assert grant.slots
    assert b"half".ljust(32, b".") in entry.incomplete
    l1.release(owner(l1, "o"), lease_id)
    for name in "ef":
        prepare(l1, entry, keys(name), now_s=UNFINISHED_PROTECTION_S)
    assert b"half".ljust(32, b".") not in entry.incomplete
    assert check(l1) == []


def test_cleared_chunks_stay_readable_while_leased_and_are_no_hits() -> None:
    l1 = new_l1(1)
    entry = space(l1)
    store(l1, entry, keys("a", "b", "c"))
    lease_id = next(call_ids)
    packed = l1.acquire(owner(l1), lease_id, LeaseKind.READ, entry, keys("a", "b"))
    assert l1.clear(entry) == 3
    assert l1.lookup(entry, keys("a")) == 0
    l1.tick(0.0)
    _, grant = prepare(l1, entry, keys(*"vwxyz"))
    assert not set(array("I", grant.slots)) & set(array("I", packed))
    l1.release(owner(l1), lease_id)
    assert check(l1) == []


def test_what_was_reserved_before_a_clear_is_refused_at_its_commit() -> None:
    l1 = new_l1(1)
    entry = space(l1)
    lease_id, _ = prepare(l1, entry, keys("a"))
    l1.clear(entry)
    assert l1.commit_store(owner(l1, "o"), lease_id, None, 0.0) == 0
    assert l1.lookup(entry, keys("a")) == 0
    l1.tick(0.0)
    assert l1.allocator.used_units == 0
    assert check(l1) == []


def test_a_cleared_namespace_stays_cleared_over_a_restart() -> None:
    l1 = new_l1(1)
    entry = space(l1)
    store(l1, entry, keys("a", "b"))
    l1.clear(entry)
    store(l1, entry, keys("c"))
    again = after_crash(l1)
    dropped = adopt(again, set(), 0.0)
    assert here(again, again.namespaces[entry.id], "a", "b", "c") == ["c"]
    assert dropped["cleared"] == 2


def test_the_slots_of_a_dead_writer_come_back_after_the_devices_grace() -> None:
    l1 = new_l1(1)
    entry = space(l1)
    prepare(l1, entry, keys("a", "b"), who="dead")
    l1.owner_died(owner(l1, "dead"), now_s=10.0)
    l1.tick(10.9)
    assert l1.allocator.used_units == 2
    l1.tick(11.0)
    assert l1.allocator.used_units == 0
    assert l1.lookup(entry, keys("a", "b")) == 0
    assert not l1.ledger.owners


def test_pages_go_to_another_class_the_longest_unused_first() -> None:
    l1 = new_l1(4)
    small = space(l1, units=1, model="small")
    for page in range(4):
        store(l1, small, keys(*(f"{page}{slot}" for slot in range(4))))
    l1.touch(small, keys("00", "01", "02", "03"))
    large = space(l1, units=4, model="large")
    assert store(l1, large, keys("big")) == 0
    kept = [page for page in range(4) if l1.lookup(small, keys(f"{page}0"))]
    assert kept == [0, 2, 3]
    assert check(l1) == []


def test_a_chunk_may_be_larger_than_a_page() -> None:
    l1 = new_l1(5)
    entry = space(l1, units=10)  # 40 KiB in pages of 16 KiB
    small = space(l1, units=1, model="small")
    store(l1, small, keys(*(f"s{i}" for i in range(20))))
    assert store(l1, entry, keys("a")) == 0
    assert l1.lookup(entry, keys("a")) == 1
    assert check(l1) == []


def test_nothing_is_handed_out_before_it_is_populated() -> None:
    l1 = new_l1(4, populated_pages=1)
    entry = space(l1)
    _, grant = prepare(l1, entry, keys(*"abcdefgh"))
    assert max(array("I", grant.slots)) < PAGE_BYTES // 4096
    assert grant.no_room_chunks == 4
    l1.allocator.pages.populate(2)
    _, grant = prepare(l1, entry, keys(*"efgh"))
    assert grant.no_room_chunks == 0


def test_bad_requests_name_their_values_and_change_nothing() -> None:
    l1 = new_l1(1)
    entry = space(l1)
    lease_id, _ = prepare(l1, entry, keys("a"))
    before = bytes(l1.state.buffer)
    with pytest.raises(BadKeys, match="33 bytes"):
        l1.lookup(entry, b"x" * 33)
    with pytest.raises(BadShard, match="shard 1 of a namespace with 1"):
        prepare(l1, entry, keys("b"), shard=1)
    with pytest.raises(LeaseNotFound, match=f"no lease {lease_id}"):
        l1.commit_store(owner(l1, "somebody else"), lease_id, None, 0.0)
    with pytest.raises(BadLease, match="position 7 is beyond the 1 slots"):
        l1.commit_store(owner(l1, "o"), lease_id, array("I", [7]).tobytes(), 0.0)
    with pytest.raises(ChunkTooLarge, match="16385 bytes"):
        l1.namespaces.register(Namespace(model="huge", dtype="u8", shard_bytes=16385))
    with pytest.raises(NamespaceConflict, match="shards of 4096 bytes"):
        l1.namespaces.register(Namespace(model="m", dtype="u8", shard_bytes=8192))
    with pytest.raises(NotRegistered, match="namespace 9"):
        l1.namespaces[9]
    with pytest.raises(BadLease, match="open already"):
        l1.prepare_store(owner(l1, "o"), lease_id, entry, keys("b"), 0, b"", 0.0)
    assert bytes(l1.state.buffer) == before
    assert check(l1) == []


def test_an_unused_namespace_makes_way_for_one_of_another_size() -> None:
    l1 = new_l1(1)
    entry = space(l1)
    store(l1, entry, keys("a"))
    l1.clear(entry)
    other = l1.namespaces.register(Namespace(model="m", dtype="u8", shard_bytes=8192))
    assert other.id != entry.id
    with pytest.raises(NotRegistered):
        l1.namespaces[entry.id]  # its old users are to register again
    l1.tick(0.0)
    assert check(l1) == []


def test_pinned_slabs_do_not_keep_other_classes_from_the_idle_ones() -> None:
    l1 = new_l1(64)
    small = space(l1, units=1, model="small")
    for page in range(64):
        store(l1, small, keys(*(f"{page}.{slot}" for slot in range(4))))
    for page in range(30):
        l1.acquire(owner(l1), next(call_ids), LeaseKind.PIN, small, keys(f"{page}.0"))
    large = space(l1, units=4, model="large")
    assert store(l1, large, keys(*(f"big{n}" for n in range(34)))) == 0
    assert store(l1, large, keys(*(f"more{n}" for n in range(35)))) == 1
    assert check(l1) == []


def test_what_was_cleared_makes_room_for_another_class_first() -> None:
    l1 = new_l1(2)
    small, large = space(l1, units=1, model="small"), space(l1, units=4, model="large")
    store(l1, large, keys("kept"))
    store(l1, small, keys(*"abcd"))
    l1.clear(small)
    l1.tick(0.0)
    store(l1, large, keys("new"))
    assert here(l1, large, "kept", "new") == ["kept", "new"]


def test_no_more_unfinished_chunks_are_given_up_than_are_too_many() -> None:
    l1 = new_l1(4)  # room for sixteen
    entry = space(l1, units=1, num_shards=2)
    for shard in (0, 1):
        store(l1, entry, keys(*(f"r{n}" for n in range(7))), shard=shard)
    store(l1, entry, keys(*(f"u{n}" for n in range(9))), shard=0)
    _, grant = prepare(l1, entry, keys(*(f"n{n}" for n in range(4))))
    assert len(grant.slots) // 4 == 4
    assert len([key for key in entry.incomplete if key.startswith(b"u")]) == 8


def test_dissolved_slabs_leave_no_cycle_behind() -> None:
    l1 = new_l1(1)
    small = space(l1, units=1, model="small")
    store(l1, small, keys("a"))
    gc.collect()
    gc.disable()
    try:
        before = sum(type(thing).__name__ == "Slot" for thing in gc.get_objects())
        for turn in range(2000):  # each of them dissolves two slabs of four slots and one
            for units in (4, 1):
                store(l1, space(l1, units=units, model=f"m{units}"), keys(f"{turn}"))
        after = sum(type(thing).__name__ == "Slot" for thing in gc.get_objects())
    finally:
        gc.enable()
    assert after < before + 3000  # those that an eviction order has not swept out yet


def test_a_restart_keeps_the_heads_of_prompts_youngest() -> None:
    l1 = new_l1(1)
    store(l1, space(l1), keys("a1", "a2", "b1", "b2"))
    again = after_crash(l1)
    adopt(again, set(), 0.0)
    entry = again.namespaces[1]
    store(again, entry, keys("new"))
    assert here(again, entry, "a1", "a2", "b1", "b2") == ["a1", "a2", "b1"]


def test_a_tenant_that_ends_in_zero_survives_a_restart() -> None:
    l1 = new_l1(1)
    entry = space(l1)
    l1.prepare_store(owner(l1), 1, entry, keys("a"), 0, b"tenant\0\0", 0.0)
    l1.commit_store(owner(l1), 1, None, 0.0)
    again = after_crash(l1)
    adopt(again, set(), 0.0)
    assert again.namespaces[entry.id].ready[keys("a")].tenant == b"tenant\0\0"


def test_holds_are_bounded_and_those_given_back_are_forgotten() -> None:
    l1 = new_l1(1)
    entry = space(l1)
    store(l1, entry, keys("a"))
    for lease_id in range(10_000, 14_000):
        assert l1.hold(owner(l1), lease_id, entry, keys("a"), until_s=600.0) == 1
    assert len(owner(l1).leases) == 1024
    for lease_id in list(owner(l1).leases):
        l1.release(owner(l1), lease_id)
        l1.hold(owner(l1), lease_id + 10_000, entry, keys("a"), until_s=600.0)
        l1.release(owner(l1), lease_id + 10_000)
    l1.tick(1.0)
    assert len(l1.holds) <= 1024
    assert check(l1) == []


def test_more_keys_than_a_message_may_have_are_refused() -> None:
    l1 = new_l1(1)
    with pytest.raises(BadKeys, match="8193 keys"):
        l1.lookup(space(l1), bytes(32 * 8193))


def test_ids_of_namespaces_without_chunks_are_used_again_when_all_are_taken() -> None:
    l1 = new_l1(1)
    kept = space(l1, model="kept")
    store(l1, kept, keys("a"))
    for number in range(20):
        space(l1, model=f"n{number}")
    assert len(l1.namespaces.entries) == 8
    assert l1.namespaces[kept.id] is kept
