"""Whatever owners do, die or restart: nobody is handed bytes that are not the chunk's, nobody's
bytes are handed to another, and the records, indexes and leases agree."""

from __future__ import annotations

import itertools
from array import array
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from lmcache_mp.errors import LeaseNotFound
from lmcache_mp.l1.adopt import adopt
from lmcache_mp.l1.check import check
from lmcache_mp.l1.lease import LeaseKind, Owner
from lmcache_mp.l1.tier import DEVICE_GRACE_S
from lmcache_mp.namespace import Namespace
from tests.l1.memory import after_crash, grow, new_l1

PAGES = 8
PROMPTS = [bytes([prompt]) for prompt in range(3)]
NAMESPACES = [
    Namespace(model="one shard", dtype="u8", shard_bytes=4096),
    Namespace(model="two shards", dtype="u8", shard_bytes=6000, num_shards=2),
]


def keys_of(prompt: bytes, chunks: int) -> bytes:
    """A prompt's keys; from nine chunks on the first comes twice, as no honest client sends it."""
    keys = [prompt.ljust(31, b"k") + bytes([chunk]) for chunk in range(chunks)]
    return b"".join([*keys, keys[0]] if chunks > 8 else keys)


@dataclass
class Held:
    """What a client knows of a lease of its own."""

    owner: bytes
    lease_id: int
    kind: LeaseKind
    space: int
    shard: int = 0
    keys: list[bytes] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)


class L1Machine(RuleBasedStateMachine):
    """The model: `memory` is what clients wrote, `whole` what was committed and not dropped."""

    held = Bundle("held")

    @initialize(populated=st.integers(2, PAGES))
    def start(self, populated: int) -> None:
        self.now_s = 100.0
        self.l1 = new_l1(PAGES, populated)
        self.call_ids = itertools.count(1)
        self.memory: dict[tuple[int, int], bytes] = {}
        self.shards: dict[tuple[int, bytes], int] = {}
        self.leases: list[Held] = []
        self.ids = [self.l1.namespaces.register(space).id for space in NAMESPACES]

    def owner(self, owner_id: bytes) -> Owner:
        return self.l1.ledger.owner(owner_id)

    @rule(pages=st.integers(1, PAGES))
    def populate(self, pages: int) -> None:
        if pages > self.l1.allocator.pages.populated:
            grow(self.l1, pages)

    @rule(
        target=held,
        owner_id=st.sampled_from([b"a" * 16, b"b" * 16]),
        space=st.integers(0, 1),
        shard=st.integers(0, 1),
        prompt=st.sampled_from(PROMPTS),
        chunks=st.integers(1, 12),
    )
    def prepare_store(
        self, owner_id: bytes, space: int, shard: int, prompt: bytes, chunks: int
    ) -> Any:
        shard %= NAMESPACES[space].num_shards
        keys = keys_of(prompt, chunks)
        lease_id = next(self.call_ids)
        entry = self.l1.namespaces[self.ids[space]]
        grant = self.l1.prepare_store(
            self.owner(owner_id), lease_id, entry, keys, shard, b"", self.now_s
        )
        indices = array("I", grant.indices)
        if not indices:
            return multiple()
        slots = array("I", grant.slots).tolist()
        for slot in slots:
            for lease in self.leases:
                if slot in lease.slots:
                    assert lease.kind == LeaseKind.WRITE
                    assert lease.shard != shard, "two writers of the same bytes"
        held = Held(
            owner_id, lease_id, LeaseKind.WRITE, space, shard,
            [keys[i * 32 : i * 32 + 32] for i in indices], slots,
        )  # fmt: skip
        for slot, key in zip(slots, held.keys, strict=True):  # the copy happens some time later
            self.memory[slot, shard] = b"half written " + key
        self.leases.append(held)
        return held

    @rule(held=consumes(held), skip=st.integers(0, 3))
    def commit(self, held: Held, skip: int) -> None:
        if held.kind != LeaseKind.WRITE or held not in self.leases:
            return
        self.leases.remove(held)
        positions = range(skip % 2, len(held.slots))
        for position in positions:
            self.memory[held.slots[position], held.shard] = held.keys[position]
        taken = self.l1.commit_store(
            self.owner(held.owner), held.lease_id, array("I", positions).tobytes(), self.now_s
        )
        assert taken <= len(positions)
        for position in positions:
            where = (held.space, held.keys[position])
            self.shards[where] = self.shards.get(where, 0) | 1 << held.shard

    @rule(held=consumes(held))
    def release(self, held: Held) -> None:
        if held not in self.leases:
            return
        self.leases.remove(held)
        try:
            self.l1.release(self.owner(held.owner), held.lease_id)
        except LeaseNotFound:
            assert held.kind == LeaseKind.HOLD  # may have expired

    @rule(
        target=held,
        owner_id=st.sampled_from([b"a" * 16, b"b" * 16]),
        space=st.integers(0, 1),
        kind=st.sampled_from([LeaseKind.READ, LeaseKind.PIN, LeaseKind.HOLD]),
        prompt=st.sampled_from(PROMPTS),
        chunks=st.integers(1, 12),
    )
    def acquire(
        self, owner_id: bytes, space: int, kind: LeaseKind, prompt: bytes, chunks: int
    ) -> Any:
        entry = self.l1.namespaces[self.ids[space]]
        keys = keys_of(prompt, chunks)
        lease_id = next(self.call_ids)
        before = self.l1.lookup(entry, keys)
        if kind == LeaseKind.HOLD:
            self.l1.hold(self.owner(owner_id), lease_id, entry, keys, self.now_s + 2)
            return multiple()  # touches no bytes
        packed = self.l1.acquire(self.owner(owner_id), lease_id, kind, entry, keys)
        slots = array("I", packed).tolist()
        assert len(slots) == before
        if not slots:
            return multiple()
        held = Held(owner_id, lease_id, kind, space, 0, [], slots)
        held.keys = [keys[i * 32 : i * 32 + 32] for i in range(len(slots))]
        self.leases.append(held)
        return held

    @rule(space=st.integers(0, 1), prompt=st.sampled_from(PROMPTS), chunks=st.integers(1, 12))
    def touch(self, space: int, prompt: bytes, chunks: int) -> None:
        self.l1.touch(self.l1.namespaces[self.ids[space]], keys_of(prompt, chunks))

    @rule(space=st.integers(0, 1), prompt=st.sampled_from(PROMPTS), chunks=st.integers(1, 3))
    def delete(self, space: int, prompt: bytes, chunks: int) -> None:
        keys = keys_of(prompt, chunks)
        entry = self.l1.namespaces[self.ids[space]]
        self.l1.delete(entry, keys)
        for at in range(0, len(keys), 32):
            self.shards.pop((space, keys[at : at + 32]), None)
        assert self.l1.lookup(entry, keys) == 0

    @rule(space=st.integers(0, 1))
    def clear(self, space: int) -> None:
        entry = self.l1.namespaces[self.ids[space]]
        hits = len(entry.ready)
        assert self.l1.clear(entry) == hits
        assert not entry.ready
        self.shards = {where: bits for where, bits in self.shards.items() if where[0] != space}

    @rule(owner_id=st.sampled_from([b"a" * 16, b"b" * 16]))
    def owner_dies(self, owner_id: bytes) -> None:
        self.l1.owner_died(self.owner(owner_id), self.now_s)
        self.leases = [lease for lease in self.leases if lease.owner != owner_id]
        self.now_s += DEVICE_GRACE_S
        self.l1.tick(self.now_s)
        assert owner_id not in self.l1.ledger.owners

    @rule(seconds=st.sampled_from([0.1, 3.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.l1.tick(self.now_s)

    @rule(alive=st.sets(st.sampled_from([b"a" * 16, b"b" * 16])))
    def engine_restarts(self, alive: set[bytes]) -> None:
        hits = {e.id: set(e.ready) for e in self.l1.namespaces.entries.values()}
        self.l1 = after_crash(self.l1)
        dropped = adopt(self.l1, alive, self.now_s)
        assert not {reason for reason in dropped if reason.startswith("damaged")}
        assert {e.id: set(e.ready) for e in self.l1.namespaces.entries.values()} == hits
        self.leases = [lease for lease in self.leases if lease.owner in alive]
        self.now_s += DEVICE_GRACE_S
        self.l1.tick(self.now_s)
        for lease in self.leases:
            assert lease.lease_id in self.owner(lease.owner).leases

    @invariant()
    def everything_agrees(self) -> None:
        assert check(self.l1) == []

    @invariant()
    def every_hit_is_whole_and_was_committed(self) -> None:
        for space, namespace in enumerate(NAMESPACES):
            entry = self.l1.namespaces[self.ids[space]]
            for key, slot in entry.ready.items():
                for shard in range(namespace.num_shards):
                    assert self.memory[slot.address, shard] == key
                assert self.shards[space, key] == entry.all_shards

    @invariant()
    def leased_bytes_stay(self) -> None:
        for lease in self.leases:
            if lease.kind == LeaseKind.READ:
                for slot, key in zip(lease.slots, lease.keys, strict=True):
                    for shard in range(NAMESPACES[lease.space].num_shards):
                        assert self.memory[slot, shard] == key


TestL1Machine = L1Machine.TestCase
TestL1Machine.settings = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
