"""The work of a client in a chaos run: store, retrieve, verify, and tell of what was promised.

The verbs fail open, as they do for an inference engine: whatever is killed, none may raise.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.chaos_log import Committed, Deleted, Deleting, Missed, Say, Silence, Tally, Wrong
from benchmarks.chaos_prompts import NAMESPACES, PROMPTS, SHARD_BYTES, of_shard, prompt_keys
from benchmarks.chunk_bytes import ChunkBytes
from lmcache_mp.client import CacheClient, ChunkKeys, Pin, RetrieveHit, StoreBatch

T = TypeVar("T")

POISON = bytes([0xDD]) * SHARD_BYTES
"""Stands in every slot before the chunk's bytes do: nobody may ever read it."""
TELL_SILENCE_S = 0.2
RETRY_S = 0.005
LONGEST_REST_S = 0.3
LONGEST_PIN_S = 3.0
MAX_PINS = 8


@dataclass(slots=True)
class Held:
    """A pin that is kept for a while."""

    pin: Pin
    keys: ChunkKeys
    """What it covers."""
    since_s: float
    until_s: float


class Rank:
    """One shard's client, and the account of what it was told."""

    def __init__(self, address: str, place: int, shard: int, who: str, say: Say) -> None:
        self.place = place
        self.shard = shard
        self.cache = CacheClient.connect(
            address, NAMESPACES[place], shard=shard, fail_open=True, timeout_s=2.0, who=who
        )
        self.tally = Tally()
        self.pins: list[Held] = []
        self._say = say
        self._asking_since_s: float | None = None
        self._failures = sum(self.cache.counters.failures.values())  # it may have failed to connect

    def ask(self, verb: Callable[[], T]) -> tuple[T, float, float, bool]:
        """What a verb returned, when it was asked and answered, and whether it was answered."""
        asked_s = time.monotonic()
        result = verb()
        answered_s = time.monotonic()
        failures = sum(self.cache.counters.failures.values())
        answered, self._failures = failures == self._failures, failures
        self._asking_since_s = self._asking_since_s or asked_s
        self.tally.longest_call_s = max(self.tally.longest_call_s, answered_s - asked_s)
        if answered:
            if answered_s - self._asking_since_s > TELL_SILENCE_S:
                self._say(Silence(self._asking_since_s, answered_s))
            self._asking_since_s = None
        else:
            self.tally.failed_open += 1
            self.tally.last_failure = self.cache.counters.last_failure
            time.sleep(RETRY_S)
        return result, asked_s, answered_s, answered

    def retrieve(self, keys: ChunkKeys) -> RetrieveHit:
        """What is there of a prompt, told if it is not all."""
        hit, asked_s, answered_s, answered = self.ask(lambda: self.cache.begin_retrieve(keys))
        if answered and hit.chunks < len(keys):
            key = keys[hit.chunks]
            pinned_s = min(
                (held.since_s for held in self.pins if key in list(held.keys)), default=None
            )
            self._say(Missed(self.place, key, asked_s, answered_s, pinned_s))
        return hit

    def verify(self, hit: RetrieveHit, keys: ChunkKeys, chunk_bytes: ChunkBytes, how: str) -> None:
        """Read all of it, and tell of every byte that is not the chunk's."""
        for index, view in hit.slots():
            chunk_bytes.read(view)
            if wrong := chunk_bytes.wrong_bytes(of_shard(keys[index], self.shard)):
                self._say(Wrong(self.place, keys[index], wrong, how))
            self.tally.verified_bytes += SHARD_BYTES

    def write(self, batch: StoreBatch, keys: ChunkKeys, chunk_bytes: ChunkBytes) -> None:
        """Fill every slot of a store, poison first."""
        for index, view in batch.slots():
            view[:] = POISON
            chunk_bytes.write(of_shard(keys[index], self.shard), view)

    def commit(self, batch: StoreBatch, keys: ChunkKeys) -> None:
        """Publish; told if all of it was taken. What was not was cleared or deleted meanwhile."""
        taken, asked_s, answered_s, answered = self.ask(batch.commit)
        if answered and taken == len(batch):
            written = b"".join(keys[index] for index in batch.indices)
            self._say(Committed(self.shard, written, asked_s, answered_s))
        self.tally.stored_chunks += taken

    def pin(self, keys: ChunkKeys, for_s: float) -> None:
        """Pin for a while what is there."""
        pin, asked_s, answered_s, _ = self.ask(lambda: self.cache.pin(keys))
        if pin.chunks:
            self.pins.append(Held(pin, keys.first(pin.chunks), asked_s, answered_s + for_s))

    def let_go(self, now_s: float) -> None:
        """Release the pins that have been kept long enough; until then they must have kept."""
        for held in [held for held in self.pins if held.until_s <= now_s]:
            self.retrieve(held.keys).release()
            self.pins.remove(held)
            held.pin.release()

    def delete(self, keys: ChunkKeys) -> None:
        """Have chunks forgotten; told before and after."""
        self._say(Deleting(keys.buffer, time.monotonic()))
        _, _, answered_s, answered = self.ask(lambda: self.cache.delete(keys))
        self._say(Deleted(answered_s, not answered))


class Work:
    """One client process's requests, chosen by a seed."""

    def __init__(self, address: str, who: str, seed: int, say: Say) -> None:
        self.rng = random.Random(seed)
        self.chunk_bytes = ChunkBytes(SHARD_BYTES)
        self.ranks = [
            [Rank(address, place, shard, who, say) for shard in range(namespace.num_shards)]
            for place, namespace in enumerate(NAMESPACES)
        ]
        self._requests = 0
        self._actions = (self.serve, self.dawdle, self.pin, self.delete, self.give_up, self.peek)

    def close(self) -> None:
        """Give everything back."""
        with ExitStack() as stack:
            for ranks in self.ranks:
                for rank in ranks:
                    stack.callback(rank.cache.close)

    @property
    def tally(self) -> Tally:
        """Of all ranks."""
        tallies = [rank.tally for ranks in self.ranks for rank in ranks]
        return Tally(
            requests=self._requests,
            verified_bytes=sum(tally.verified_bytes for tally in tallies),
            stored_chunks=sum(tally.stored_chunks for tally in tallies),
            failed_open=sum(tally.failed_open for tally in tallies),
            longest_call_s=max(tally.longest_call_s for tally in tallies),
            last_failure=next((t.last_failure for t in tallies if t.last_failure), ""),
        )

    def step(self) -> None:
        """One request."""
        place = self.rng.randrange(len(NAMESPACES))
        keys = prompt_keys(place, self.rng.randrange(PROMPTS[place]))
        (action,) = self.rng.choices(self._actions, weights=(66, 6, 10, 8, 4, 6))
        for rank in self.ranks[place]:
            rank.let_go(time.monotonic())
            action(rank, keys)
        self._requests += 1

    def serve(self, rank: Rank, keys: ChunkKeys) -> None:
        """Read what is there, store what is missing: what an inference engine does."""
        with rank.retrieve(keys) as hit:
            rank.verify(hit, keys, self.chunk_bytes, "serve")
        if hit.chunks < len(keys):
            batch, *_ = rank.ask(lambda: rank.cache.begin_store(keys))
            rank.write(batch, keys, self.chunk_bytes)
            rank.commit(batch, keys)

    def dawdle(self, rank: Rank, keys: ChunkKeys) -> None:
        """The same with leases that are held for a while: bytes must not change under them."""
        with rank.retrieve(keys) as hit:
            rank.verify(hit, keys, self.chunk_bytes, "read")
            self._rest()
            rank.verify(hit, keys, self.chunk_bytes, "read again under the same lease")
        if hit.chunks < len(keys):
            batch, *_ = rank.ask(lambda: rank.cache.begin_store(keys))
            self._rest()
            rank.write(batch, keys, self.chunk_bytes)
            self._rest()
            rank.commit(batch, keys)

    def pin(self, rank: Rank, keys: ChunkKeys) -> None:
        """Pin it, for as long as it takes until there are too many or it is time."""
        if len(rank.pins) < MAX_PINS:
            rank.pin(keys, self.rng.uniform(0, LONGEST_PIN_S))
        if rank.pins:
            held = self.rng.choice(rank.pins)
            with rank.retrieve(held.keys) as hit:
                rank.verify(hit, held.keys, self.chunk_bytes, "pinned")

    def delete(self, rank: Rank, keys: ChunkKeys) -> None:
        """Have a prompt's later chunks forgotten."""
        rank.delete(ChunkKeys(b"".join(list(keys)[self.rng.randrange(len(keys)) :])))

    def give_up(self, rank: Rank, keys: ChunkKeys) -> None:
        """Write nonsense, and abort."""
        batch, *_ = rank.ask(lambda: rank.cache.begin_store(keys))
        for _, view in batch.slots():
            view[:] = POISON
        batch.abort()

    def peek(self, rank: Rank, keys: ChunkKeys) -> None:
        """Ask without leases."""
        rank.ask(lambda: rank.cache.lookup(keys, hold_s=self.rng.uniform(0, 1)))
        rank.ask(lambda: rank.cache.touch(keys))

    def _rest(self) -> None:
        time.sleep(self.rng.uniform(0, LONGEST_REST_S))
