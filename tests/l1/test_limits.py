"""What one client can have of L1, so that there is something left for the others."""

from __future__ import annotations

import pytest

from lmcache_mp.errors import LimitReached
from lmcache_mp.l1.adopt import adopt
from lmcache_mp.l1.check import check
from lmcache_mp.l1.index import NamespaceEntry
from lmcache_mp.l1.lease import LeaseKind
from lmcache_mp.l1.tier import L1
from lmcache_mp.namespace import Namespace
from tests.l1.memory import after_crash, grow, new_l1, prompt_keys, state_file

ONE = prompt_keys(1, 1)


def small_l1(max_leases: int) -> L1:
    l1 = L1(state_file(2), max_leases=max_leases)
    grow(l1, 2)
    return l1


def stored(l1: L1, chunks: int = 1) -> NamespaceEntry:
    entry = l1.namespaces.register(Namespace(model="m", dtype="u8", shard_bytes=4096))
    writer = l1.ledger.owner(b"writer".ljust(16))
    l1.prepare_store(writer, 1, entry, prompt_keys(1, chunks), 0, b"", 0.0)
    assert l1.commit_store(writer, 1, None, 0.0) == chunks
    return entry


def test_an_owner_with_as_many_leases_as_it_may_have_is_told_the_limit_by_name() -> None:
    l1 = small_l1(max_leases=3)
    entry, owner = stored(l1), l1.ledger.owner(b"o" * 16)
    l1.acquire(owner, 1, LeaseKind.READ, entry, ONE)
    l1.acquire(owner, 2, LeaseKind.PIN, entry, ONE)
    assert l1.hold(owner, 3, entry, ONE, 10.0) == 1
    with pytest.raises(LimitReached, match=r"has 3 leases.* may have 3 \(max_leases\)"):
        l1.acquire(owner, 4, LeaseKind.READ, entry, ONE)
    with pytest.raises(LimitReached, match="max_leases"):
        l1.prepare_store(owner, 5, entry, prompt_keys(7, 1), 0, b"", 0.0)
    assert check(l1) == []
    l1.release(owner, 1)
    l1.acquire(owner, 6, LeaseKind.READ, entry, ONE)
    assert l1.acquire(l1.ledger.owner(b"p" * 16), 1, LeaseKind.READ, entry, ONE)


def test_a_hold_beyond_the_limit_is_only_a_lookup() -> None:
    l1 = small_l1(max_leases=1)
    entry, owner = stored(l1), l1.ledger.owner(b"o" * 16)
    assert l1.hold(owner, 1, entry, ONE, 10.0) == 1
    assert l1.hold(owner, 2, entry, ONE, 10.0) == 1
    assert list(owner.leases) == [1]
    assert check(l1) == []


def test_one_owner_gets_half_of_the_lease_records_and_leaves_others_theirs() -> None:
    l1 = new_l1(1)
    entry = stored(l1)
    greedy, other = l1.ledger.owner(b"g" * 16), l1.ledger.owner(b"o" * 16)
    for lease_id in range(1, 33):
        l1.acquire(greedy, lease_id, LeaseKind.READ, entry, ONE)
    with pytest.raises(LimitReached, match="take 32 of the server's 64 lease records"):
        l1.acquire(greedy, 33, LeaseKind.READ, entry, ONE)
    for lease_id in range(1, 17):
        l1.acquire(other, lease_id, LeaseKind.READ, entry, ONE)
    with pytest.raises(LimitReached, match="take 16 of the server's 64 lease records"):
        l1.acquire(other, 17, LeaseKind.READ, entry, ONE)
    assert check(l1) == []


def test_adopted_leases_count_for_the_limits() -> None:
    l1 = new_l1(1)
    entry, owner = stored(l1), l1.ledger.owner(b"o" * 16)
    for lease_id in range(1, 33):
        l1.acquire(owner, lease_id, LeaseKind.READ, entry, ONE)
    again = after_crash(l1)
    adopt(again, {owner.id}, 0.0)
    assert check(again) == []
    with pytest.raises(LimitReached, match="take 32 of"):
        again.acquire(
            again.ledger.owner(owner.id), 33, LeaseKind.READ, again.namespaces[entry.id], ONE
        )


def test_sizes_that_no_namespace_has_any_more_are_forgotten() -> None:
    """Else whoever registers namespaces of ever new sizes makes the engine grow without end."""
    l1 = new_l1(8)
    kept = stored(l1)
    for units in range(2, 34):
        l1.namespaces.register(
            Namespace(model=f"of {units}", dtype="u8", shard_bytes=units % 30 * 4096 + 1)
        )
    assert len(l1.namespaces.entries) == l1.state.geometry.namespaces
    assert len(l1.allocator.classes) <= l1.state.geometry.namespaces
    assert l1.lookup(kept, ONE) == 1
    assert check(l1) == []


def test_a_size_goes_with_its_last_page() -> None:
    l1 = new_l1(1)
    entry = stored(l1)
    l1.delete(entry, ONE)
    for shard_bytes in (8192, 16384):  # each takes the only page from the one before
        entry = l1.namespaces.register(Namespace(model="m", dtype="u8", shard_bytes=shard_bytes))
        owner = l1.ledger.owner(b"o" * 16)
        grant = l1.prepare_store(owner, shard_bytes, entry, ONE, 0, b"", 0.0)
        assert len(grant.slots) == 4
        l1.release(owner, shard_bytes)
        assert [c.slot_units for c in l1.allocator.classes.values()] == [shard_bytes // 4096]
        assert check(l1) == []
