"""What a restarted engine makes of an undamaged state file; test_damage has the others."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from array import array
from pathlib import Path

from lmcache_mp.l1.adopt import adopt
from lmcache_mp.l1.check import check
from lmcache_mp.l1.lease import LeaseKind
from lmcache_mp.l1.segment import open_store
from lmcache_mp.l1.tier import L1
from lmcache_mp.namespace import Namespace
from lmcache_mp.rundir import L1Files
from tests.l1.memory import after_crash, new_l1
from tests.l1.memory import prompt_keys as keys

NAMESPACE = Namespace(model="m", dtype="u8", shard_bytes=2048, num_shards=2)


def filled() -> L1:
    """Chunks ready, half done and reserved; leases of all recorded kinds."""
    l1 = new_l1(4)
    entry = l1.namespaces.register(NAMESPACE)
    living, dead = l1.ledger.owner(b"living.........."), l1.ledger.owner(b"dead............")
    for lease_id, shard in ((1, 0), (2, 1)):
        l1.prepare_store(living, lease_id, entry, keys(0, 6), shard, b"t", 0.0)
        l1.commit_store(living, lease_id, None, 0.0)
    l1.prepare_store(living, 3, entry, keys(6, 2), 0, b"", 0.0)
    l1.commit_store(living, 3, None, 0.0)
    l1.prepare_store(living, 4, entry, keys(8, 2), 0, b"", 0.0)
    l1.prepare_store(dead, 5, entry, keys(10, 2), 1, b"", 0.0)
    l1.acquire(living, 6, LeaseKind.READ, entry, keys(0, 3))
    l1.acquire(dead, 7, LeaseKind.PIN, entry, keys(0, 2))
    return l1


LIVING = {b"living.........."}


def test_a_restart_brings_back_chunks_and_the_leases_of_the_living() -> None:
    before = filled()
    l1 = after_crash(before)
    dropped = adopt(l1, LIVING, 100.0)
    entry = l1.namespaces[1]
    assert entry.namespace == NAMESPACE
    assert l1.lookup(entry, keys(0, 8)) == 6
    living = l1.ledger.owners[b"living.........."]
    assert {i: lease.kind for i, lease in living.leases.items()} == {
        4: LeaseKind.WRITE,
        6: LeaseKind.READ,
    }
    assert not dropped
    l1.tick(101.0)  # the dead writer's grace
    assert b"dead............" not in l1.ledger.owners
    assert l1.commit_store(living, 4, None, 101.0) == 2
    grant = l1.prepare_store(living, 8, entry, keys(6, 4), 1, b"", 101.0)
    assert array("I", grant.indices).tolist() == [0, 1, 2, 3]
    assert l1.commit_store(living, 8, None, 101.0) == 4
    assert l1.lookup(entry, keys(0, 12)) == 10
    assert check(l1) == []


def test_a_commit_cut_off_by_the_crash_can_be_repeated() -> None:
    l1 = filled()
    living = l1.ledger.owners[b"living.........."]
    lease = living.leases[4]
    first = lease.slots[0]
    assert first is not None
    l1.state.commit_shard(first.record, 0)  # one slot of two, and the lease still stands
    again = after_crash(l1)
    adopt(again, LIVING, 100.0)
    assert again.commit_store(again.ledger.owners[living.id], 4, None, 100.0) == 2
    again.tick(200.0)
    assert check(again) == []


def test_a_commit_of_chunks_deleted_before_the_restart_takes_none_of_them() -> None:
    l1 = filled()
    l1.delete(l1.namespaces[1], keys(8, 2))
    again = after_crash(l1)
    adopt(again, LIVING, 100.0)
    assert again.commit_store(again.ledger.owners[b"living.........."], 4, None, 100.0) == 0
    assert check(again) == []


def test_a_shard_committed_by_the_slots_last_user_is_none_of_the_next_ones() -> None:
    l1 = new_l1(4)
    ranks = l1.namespaces.register(NAMESPACE)
    whole = l1.namespaces.register(Namespace(model="whole", dtype="u8", shard_bytes=4096))
    assert ranks.size_class is whole.size_class
    owner = l1.ledger.owner(b"living..........")
    for lease_id, shard in ((1, 0), (2, 1)):
        l1.prepare_store(owner, lease_id, ranks, keys(0, 4), shard, b"", 0.0)
        l1.commit_store(owner, lease_id, None, 0.0)
    l1.delete(ranks, keys(0, 4))
    l1.prepare_store(owner, 3, whole, keys(0, 4), 0, b"", 0.0)
    assert check(l1) == []
    again = after_crash(l1)
    adopt(again, LIVING, 100.0)
    assert again.commit_store(again.ledger.owners[owner.id], 3, None, 100.0) == 4
    assert again.lookup(again.namespaces[whole.id], keys(0, 4)) == 4


def test_the_eviction_order_outlives_the_engine() -> None:
    l1 = new_l1(12)
    entries = [
        l1.namespaces.register(Namespace(model=model, dtype="u8", shard_bytes=size))
        for model, size in (("large", 8192), ("small", 4096))
    ]
    owner = l1.ledger.owner(b"living..........")
    for number in range(6):
        entry = entries[number % 2]
        l1.prepare_store(owner, number + 1, entry, keys(number * 10, 3), 0, b"", 0.0)
        l1.commit_store(owner, number + 1, None, 0.0)
    again = after_crash(l1)
    adopt(again, set(), 0.0)
    for entry in entries:
        then = [slot.key for slot in entry.size_class.order.victims(99)]
        now = again.namespaces[entry.id].size_class.order.victims(99)
        assert [slot.key for slot in now] == then
        assert len(then) == len(entry.ready) == 9


def told_before_death(directory: str, after_s: float) -> set[int]:
    """Kill a child that stores and deletes; the prompts whose commits were answered."""
    command = [sys.executable, "-m", "tests.l1.store_and_tell", directory]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(after_s)  # not to wait for anything: when to kill is the point
        child.kill()
        committed: set[int] = set()
        for line in child.stdout:
            verb, _, prompt = line.partition(" ")
            if not line.endswith("\n"):
                continue
            if verb == "committed":
                committed.add(int(prompt))
            else:
                committed.discard(int(prompt))
    return committed


def test_a_kill_at_any_moment_leaves_no_torn_record_and_loses_no_commit() -> None:
    chance = random.Random(7)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        files = L1Files(Path(directory) / "l1", Path(directory) / "state")
        for _ in range(12):
            committed = told_before_death(directory, chance.random() * 0.02)
            store = open_store(files, 1 << 20, adopt=True)
            assert store.adoptable, store.cold_reason
            l1 = L1(store.state)
            dropped = adopt(l1, set(), 0.0)
            assert set(dropped) <= {"unfinished", "unfinished lease"}
            for first in committed:
                assert l1.lookup(l1.namespaces[1], keys(first, 4)) == 4, first
            l1.tick(10.0)
            assert check(l1) == []
            store.close()
