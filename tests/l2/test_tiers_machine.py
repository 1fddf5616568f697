"""Whatever clients and workers do, die or take too long: what is a hit in L1 has the chunk's bytes,
every caller is answered once, and nothing stays leased for nobody."""

from __future__ import annotations

import itertools
from array import array
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from typing_extensions import override

from lmcache_mp.l1.check import check
from lmcache_mp.l1.lease import LeaseKind, Owner
from lmcache_mp.l1.tier import DEVICE_GRACE_S, split_keys
from lmcache_mp.namespace import Namespace
from lmcache_mp.tiering.jobs import Ask
from lmcache_mp.tiering.messages import ABSENT, DONE, FAILED, Lane, Verb, Work
from lmcache_mp.tiering.promotion import Promotion
from lmcache_mp.tiering.spec import AdapterSpec
from lmcache_mp.tiering.station import Station
from lmcache_mp.tiering.tiers import Tiers
from tests.l1.memory import new_l1, prompt_keys

PROMPTS = [(0, 6), (100, 4), (200, 9)]
NAMESPACES = [
    Namespace(model="one shard", dtype="u8", shard_bytes=4096),
    Namespace(model="two shards", dtype="u8", shard_bytes=4096, num_shards=2),
]
NAMES = ["near", "far"]
some_prompt = st.sampled_from(PROMPTS)
some_space = st.integers(0, 1)
some_name = st.sampled_from(NAMES)


@dataclass
class Asked:
    """A promotion, and what it was answered."""

    promotion: Promotion
    answers: list[int] = field(default_factory=list)


@dataclass
class Worker:
    """What a real worker keeps: its identity, its objects, the work it has."""

    owner: Owner
    objects: dict[bytes, tuple[bytes, bytes]] = field(default_factory=dict)
    """By key: namespace digest, content."""
    works: dict[int, Work] = field(default_factory=dict)


class TiersMachine(RuleBasedStateMachine):
    """`memory` is L1's bytes by slot address; a chunk's content is its namespace and its key."""

    @initialize(cascade=st.sampled_from(["commit", "evict"]))
    def start(self, cascade: str) -> None:
        self.now_s = 100.0
        self.drops = 0
        self.ids = itertools.count(1)
        self.l1 = new_l1(4)
        self.memory: dict[int, bytes] = {}
        self.entries = [self.l1.namespaces.register(space) for space in NAMESPACES]
        self.client = self.l1.ledger.owner(b"client".ljust(16))
        self.tiers = Tiers(self.l1, lambda station, lane: None)
        self.asked: list[Asked] = []
        self.workers: dict[str, Worker] = {}
        self.stations: list[Station] = []
        for name in NAMES:
            spec = AdapterSpec(
                {"type": "memory", "name": name, "cascade": cascade, "queue": "64KiB"}
            )
            self.stations.append(self.tiers.add(name, spec))
            self.workers[name] = Worker(self.new_owner())
            self.report(name, usable=True)

    def new_owner(self) -> Owner:
        return self.l1.ledger.owner(next(self.ids).to_bytes(16, "big"))

    # --- clients ---

    @rule(space=some_space, prompt=some_prompt, shards=st.integers(1, 2))
    def store(self, space: int, prompt: tuple[int, int], shards: int) -> None:
        entry, keys = self.entries[space], prompt_keys(*prompt)
        names = split_keys(keys)
        for shard in range(min(shards, entry.namespace.num_shards)):
            lease_id = next(self.ids)
            grant = self.l1.prepare_store(
                self.client, lease_id, entry, keys, shard, b"", self.now_s
            )
            for index, slot in zip(array("I", grant.indices), array("I", grant.slots), strict=True):
                self.memory[slot] = entry.digest + names[index]
            if grant.slots:
                self.l1.commit_store(self.client, lease_id, None, self.now_s)

    @rule(space=some_space, prompt=some_prompt, wait_s=st.integers(0, 3))
    def promote(self, space: int, prompt: tuple[int, int], wait_s: int) -> None:
        entry, keys = self.entries[space], prompt_keys(*prompt)
        answers: list[int] = []
        here, drops = self.retrieve(space, keys), self.drops

        def then() -> None:
            answers.append(self.retrieve(space, keys))
            assert answers[-1] >= here or self.drops > drops, "what was here was not kept"

        promotion = self.tiers.promote(entry, split_keys(keys), self.now_s + wait_s, then)
        self.asked.append(Asked(promotion, answers))

    @rule(which=st.integers(0, 20))
    def give_up(self, which: int) -> None:
        if which < len(self.asked) and not self.asked[which].promotion.over:
            self.asked.pop(which).promotion.cancel()

    @rule(space=some_space, prompt=some_prompt)
    def lookup(self, space: int, prompt: tuple[int, int]) -> None:
        entry, keys = self.entries[space], prompt_keys(*prompt)
        rest = split_keys(keys)[self.l1.lookup(entry, keys) :]
        located, pending = self.tiers.further(entry, rest, ask=True)
        assert len(located) + pending <= len(rest)

    @rule(space=some_space, prompt=st.sampled_from(PROMPTS[:1]))
    def delete(self, space: int, prompt: tuple[int, int]) -> None:
        keys = prompt_keys(*prompt)
        self.drops += 1
        self.l1.delete(self.entries[space], keys)
        self.tiers.forget(self.entries[space], split_keys(keys))

    @rule(space=some_space)
    def clear(self, space: int) -> None:
        self.drops += 1
        self.l1.clear(self.entries[space])

    # --- workers ---

    @rule(name=some_name, usable=st.sampled_from([True, True, False]))
    def report(self, name: str, usable: bool) -> None:
        station = self.tiers.stations[name]
        if station.reported(self.workers[name].owner, 1, None if usable else "broken"):
            self.tiers.opened(station)

    @rule(
        name=some_name,
        lane=st.sampled_from(list(Lane)),
        chunks=st.integers(1, 4),
        reaches=st.booleans(),
    )
    def take(self, name: str, lane: Lane, chunks: int, reaches: bool) -> None:
        worker, work_id = self.workers[name], next(self.ids)
        station = self.tiers.stations[name]
        work = station.take(lane, worker.owner, work_id, chunks, 1 << 20, self.now_s)
        if work is None:
            return
        if not reaches:  # as the engine does when an answer cannot be delivered
            if work_id in worker.owner.leases:
                self.l1.release(worker.owner, work_id)
            station.lost(worker.owner, work_id)
            return
        worker.works[work_id] = work
        if work.verb == Verb.LOAD:
            for slot in array("I", work.slots):
                self.memory[slot] = b"half written"

    @rule(name=some_name, fails=st.sampled_from([None, ABSENT, FAILED]))
    def finish(self, name: str, fails: int | None) -> None:
        worker = self.workers[name]
        if not worker.works:
            return
        work_id, work = worker.works.popitem()
        outcomes = bytes(
            self.outcome(worker, work, index) if fails is None else fails
            for index in range(len(work.keys) // 32)
        )
        self.tiers.done(self.tiers.stations[name], worker.owner, work_id, outcomes, self.now_s)

    def outcome(self, worker: Worker, work: Work, index: int) -> int:
        """Do as a worker does."""
        key = split_keys(work.keys)[index]
        if work.verb == Verb.DELETE:
            worker.objects.pop(key, None)
            return DONE
        if work.verb == Verb.LOOKUP:
            return DONE if key in worker.objects else ABSENT
        slot = array("I", work.slots)[index]
        if work.verb == Verb.STORE:
            worker.objects.setdefault(key, (work.namespace, self.memory[slot]))
            return DONE
        digest, content = worker.objects.get(key, (b"", b""))
        if digest != work.namespace:  # the envelope says so
            worker.objects.pop(key, None)
            return ABSENT
        self.memory[slot] = content
        return DONE

    @rule(name=some_name, lanes=st.sampled_from([list(Lane), [Lane.STORE]]))
    def work_off(self, name: str, lanes: list[Lane]) -> None:
        for _ in range(3):
            for lane in lanes:
                self.take(name, lane, 4, reaches=True)
                self.finish(name, None)

    @rule(space=some_space, prompt=st.sampled_from(PROMPTS[1:]))
    def return_later(self, space: int, prompt: tuple[int, int]) -> None:
        """A prompt is cascaded, leaves L1, and is wanted again."""
        self.store(space, prompt, 2)
        for name in NAMES:
            self.work_off(name, list(Lane))
        self.clear(space)
        self.promote(space, prompt, 3)
        self.promote(1 - space, prompt, 3)  # the same keys, as no honest client has them
        self.work_off("near", list(Lane))

    @rule(name=some_name)
    def worker_dies(self, name: str) -> None:
        worker = self.workers[name]
        self.tiers.worker_gone(worker.owner)
        self.l1.owner_died(worker.owner, self.now_s)
        self.workers[name] = Worker(self.new_owner(), worker.objects)
        self.report(name, usable=True)

    @rule(seconds=st.sampled_from([0.1, DEVICE_GRACE_S, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.l1.tick(self.now_s)
        self.tiers.tick(self.now_s)

    # --- what must be true ---

    def retrieve(self, space: int, keys: bytes) -> int:
        """Read a prompt as a client does: every byte of it must be the prompt's."""
        entry, lease_id = self.entries[space], next(self.ids)
        packed = self.l1.acquire(self.client, lease_id, LeaseKind.READ, entry, keys)
        slots = array("I", packed)
        for key, slot in zip(split_keys(keys), slots, strict=False):
            assert self.memory[slot] == entry.digest + key
        if slots:
            self.l1.release(self.client, lease_id)
        return len(slots)

    @invariant()
    def hits_are_right(self) -> None:
        for space in range(len(NAMESPACES)):
            for prompt in PROMPTS:
                self.retrieve(space, prompt_keys(*prompt))

    @invariant()
    def the_records_agree(self) -> None:
        assert check(self.l1) == []

    @invariant()
    def everybody_is_answered_once(self) -> None:
        for asked in self.asked:
            assert len(asked.answers) == asked.promotion.over

    @override
    def teardown(self) -> None:
        """When all have come to an end, nothing is left of it."""
        if not hasattr(self, "tiers"):
            return
        for name in NAMES:
            self.worker_dies(name)
            self.report(name, usable=False)
        self.time_passes(100.0)
        assert all(len(asked.answers) == 1 for asked in self.asked)
        assert not any(owner.leases for owner in self.l1.ledger.owners.values())
        assert not self.tiers._loads
        assert not any(station._taken for station in self.stations)
        assert check(self.l1) == []


TestTiers = TiersMachine.TestCase
TestTiers.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_a_question_to_an_adapter_that_is_not_open_is_answered_at_once() -> None:
    l1 = new_l1(2)
    station = Tiers(l1, lambda *_: None).add("far", AdapterSpec({"type": "memory"}))
    answers: list[bytes | None] = []
    station.ask(Ask(Verb.LOOKUP, None, (b"k" * 32,), answers.append))
    assert answers == [None]


def test_what_a_promotion_has_is_kept_until_it_is_answered() -> None:
    l1 = new_l1(4)
    tiers = Tiers(l1, lambda *_: None)
    station = tiers.add("far", AdapterSpec({"type": "memory", "cascade": "never"}))
    worker, client = l1.ledger.owner(b"worker".ljust(16)), l1.ledger.owner(b"client".ljust(16))
    station.reported(worker, 1, None)
    entry = l1.namespaces.register(NAMESPACES[0])
    wanted, here = prompt_keys(0, 2), prompt_keys(0, 1)
    l1.prepare_store(client, 1, entry, here, 0, b"", 0.0)
    l1.commit_store(client, 1, None, 0.0)
    answers: list[int] = []
    promotion = tiers.promote(
        entry, split_keys(wanted), 10.0, lambda: answers.append(l1.lookup(entry, wanted))
    )
    assert station.take(Lane.ASK, worker, 2, 8, 1 << 20, 0.0) is not None
    l1.prepare_store(client, 3, entry, prompt_keys(100, 99), 0, b"", 0.0)  # evicts all it can
    assert l1.lookup(entry, here) == 1
    tiers.tick(10.0)
    assert promotion.over
    assert answers == [1]


def test_a_commit_stands_though_no_lease_is_left_for_its_cascade() -> None:
    l1 = new_l1(4)
    worker, client = l1.ledger.owner(b"worker".ljust(16)), l1.ledger.owner(b"client".ljust(16))
    taken: list[Work | None] = []

    def feed(station: Station, lane: Lane) -> None:
        taken.append(station.take(lane, worker, 1, 8, 1 << 20, 0.0))

    tiers = Tiers(l1, feed)
    tiers.add("far", AdapterSpec({"type": "memory"})).reported(worker, 1, None)
    entry = l1.namespaces.register(NAMESPACES[0])
    l1.prepare_store(client, 1, entry, prompt_keys(0, 4), 0, b"", 0.0)
    l1.ledger.max_leases = 0
    assert l1.commit_store(client, 1, None, 0.0) == 4
    assert taken == [None]
    assert check(l1) == []
