"""One adapter as the engine sees it: what waits for its worker, what its worker is doing.

A worker takes work when it has a thread for it; only then are slots leased to it, so a worker that
hangs holds a few chunks and no more. Nothing here waits, and time is passed in.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from lmcache_mp.errors import LimitReached
from lmcache_mp.l1.index import NamespaceEntry
from lmcache_mp.l1.lease import ALL_SHARDS, LeaseKind, Owner
from lmcache_mp.l1.slot import Slot
from lmcache_mp.l1.tier import L1
from lmcache_mp.tiering.backlog import Backlog
from lmcache_mp.tiering.jobs import Ask, Load, Taken, work
from lmcache_mp.tiering.known import Known
from lmcache_mp.tiering.messages import DONE, FAILED, Lane, Verb, Work
from lmcache_mp.tiering.outcomes import count, positions
from lmcache_mp.tiering.spec import AdapterSpec
from lmcache_mp.tiering.status import L2Counters


class State(enum.StrEnum):
    """Whether an adapter can be used."""

    STARTING = "starting"
    OPEN = "open"
    FAILING = "failing"
    DETACHING = "detaching"


MAX_ASKS = 256
"""Questions that wait for an adapter; those who ask more are answered that nobody can say."""

OnWork = Callable[["Station", Lane], None]


class Station:
    """See the module."""

    def __init__(self, spec: AdapterSpec, name: str, l1: L1, on_work: OnWork) -> None:
        self.spec = spec
        self.name = name
        self.state = State.STARTING
        self.error = ""
        self.pid = 0
        self.figures: dict[str, int | float] = {}
        self.counters = L2Counters()
        self.known = Known()
        self.backlog = Backlog(spec.common.queue)
        self.leaving: set[bytes] = set()
        """Keys that were queued because their chunks are about to be evicted."""
        self.missing: Iterator[Slot] | None = None
        """What was in L1 before the adapter could be used, as far as it has not been offered it."""
        self._asks: deque[Ask] = deque()
        self._loads: deque[Load] = deque()
        self._loads_bytes = 0
        self._taken: dict[tuple[bytes, int], Taken] = {}
        self._owner: Owner | None = None
        """The worker; a dead one may still hold leases beside its successor."""
        self._l1 = l1
        self._on_work = on_work

    @property
    def is_open(self) -> bool:
        """Whether it may be asked, and loaded from."""
        return self.state == State.OPEN

    @property
    def queued_loads(self) -> int:
        """Chunks that wait to be loaded."""
        return len(self._loads)

    @property
    def takes_cascades(self) -> bool:
        """Whether chunks may wait for it; also while it is not open."""
        return self.state != State.DETACHING and self.spec.common.cascade != "never"

    @property
    def storing(self) -> bool:
        """Whether chunks are on their way to it, or wait and could be."""
        under_way = any(taken.lane == Lane.STORE for taken in self._taken.values())
        return under_way or (bool(self.backlog) and self.state in (State.OPEN, State.DETACHING))

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not (self._asks or self._loads or self.backlog or self._taken)

    # --- wishes ---

    def ask(self, ask: Ask) -> None:
        """Ask its worker; at once without an answer if it is not open."""
        if not self.is_open or len(self._asks) >= MAX_ASKS:
            ask.then(None)
            return
        self._asks.append(ask)
        self._on_work(self, Lane.ASK)

    def load(self, load: Load) -> bool:
        """Queue a chunk to be loaded; False if there is no room in the queue."""
        chunk_bytes = load.entry.namespace.chunk_bytes
        if not self.is_open or self._loads_bytes + chunk_bytes > max(
            self.spec.common.queue, chunk_bytes
        ):
            self.counters.load_refused_chunks += 1
            return False
        self._loads.append(load)
        self._loads_bytes += chunk_bytes
        return True

    def start_loads(self) -> None:
        """Let the worker know of what was queued."""
        if self._loads:
            self._on_work(self, Lane.LOAD)

    def cascade(self, entry: NamespaceEntry, keys: Sequence[bytes]) -> int:
        """Queue chunks to be stored; how many there was room for."""
        count = self.backlog.add(entry, keys)
        self.counters.cascade_dropped_chunks += len(keys) - count
        self._on_work(self, Lane.STORE)
        return count

    # --- what its worker says ---

    def reported(self, owner: Owner, pid: int, error: str | None) -> bool:
        """Its worker says that the adapter can be used, or why not; whether it can be used now and
        could not before.
        """
        self._owner, self.pid = owner, pid
        self.error = error or ""
        if self.state == State.DETACHING:
            return False
        was_open, self.state = self.is_open, State.OPEN if error is None else State.FAILING
        if self.is_open and not was_open:
            self.known.clear()  # it may come back with less than it had
        if was_open and not self.is_open:
            self._drop_queues()
        return self.is_open and not was_open

    def worker_gone(self, owner: Owner) -> None:
        """Its worker died, or said goodbye: what it had taken comes to nothing."""
        for owner_id, work_id in list(self._taken):
            if owner_id == owner.id:
                self._settle(self._taken.pop((owner_id, work_id)), None)
        if owner is self._owner:
            self._owner, self.pid = None, 0
            self.known.clear()
            if self.state != State.DETACHING:
                self.state = State.STARTING
            self._drop_queues()

    def detach(self) -> None:
        """Nothing new goes there; what waits is finished."""
        self.state = State.DETACHING

    def close(self) -> None:
        """It is gone: nobody is to wait for it."""
        self.state = State.DETACHING
        taken, self._taken = self._taken, {}
        for work_ in taken.values():
            self._settle(work_, None)
        self._drop_queues()

    def take(
        self, lane: Lane, owner: Owner, work_id: int, max_chunks: int, max_bytes: int, now_s: float
    ) -> Work | None:
        """The next piece of work, leased to the worker; None if there is none, or no lease."""
        if lane == Lane.ASK:
            return self._take_ask(owner, work_id)
        try:
            self._l1.ledger.require_room(owner, work_id, max_chunks)
        except LimitReached:  # when leases are back it is asked for again
            return None
        if lane == Lane.LOAD:
            return self._take_loads(owner, work_id, max_chunks, max_bytes, now_s)
        return self._take_cascades(owner, work_id, max_chunks, max_bytes)

    def done(self, owner: Owner, work_id: int, outcomes: bytes, now_s: float) -> None:
        """A piece of work has ended; what was loaded becomes a hit, and its lease ends.

        Work that an earlier engine gave is known by its lease alone.
        """
        lease = owner.leases.get(work_id)
        if lease is not None and lease.kind == LeaseKind.WRITE:
            written = positions(outcomes, DONE, len(lease.slots))
            self._l1.commit_store(owner, work_id, written, now_s)
        elif lease is not None:
            self._l1.release(owner, work_id)
        taken = self._taken.pop((owner.id, work_id), None)
        if taken is not None:
            self._settle(taken, outcomes.ljust(len(taken.keys), bytes((FAILED,))))

    def lost(self, owner: Owner, work_id: int) -> None:
        """The answer that gave this work was not taken: it waits again, first in line."""
        taken = self._taken.pop((owner.id, work_id), None)
        if taken is None:
            return
        if taken.ask is not None:
            self._asks.appendleft(taken.ask)
        self._loads.extendleft(reversed(taken.loads))
        if taken.lane == Lane.LOAD and taken.entry is not None:
            self._loads_bytes += len(taken.loads) * taken.entry.namespace.chunk_bytes
        elif taken.lane == Lane.STORE and taken.entry is not None:
            self.backlog.add(taken.entry, taken.keys)

    # --- inside ---

    def _drop_queues(self) -> None:
        """Nobody is to wait for an adapter that cannot be used. Cascades wait on."""
        asks, self._asks = self._asks, deque()
        loads, self._loads, self._loads_bytes = self._loads, deque(), 0
        for ask in asks:
            ask.then(None)
        self.counters.load_failed_chunks += len(loads)
        for load in loads:
            load.end(False)

    def _take_ask(self, owner: Owner, work_id: int) -> Work | None:
        if not self._asks:
            return None
        ask = self._asks.popleft()
        self._taken[owner.id, work_id] = Taken(Lane.ASK, ask.entry, ask.keys, ask)
        return work(ask.verb, ask.entry, ask.keys)

    def _take_loads(
        self, owner: Owner, work_id: int, max_chunks: int, max_bytes: int, now_s: float
    ) -> Work | None:
        while self._loads:
            loads = self._next_loads(max_chunks, max_bytes)
            entry, keys = loads[0].entry, [load.key for load in loads]
            grant = self._l1.prepare_store(
                owner, work_id, entry, b"".join(keys), ALL_SHARDS, b"", now_s
            )
            granted = set(memoryview(grant.indices).cast("I"))
            taken = [load for index, load in enumerate(loads) if index in granted]
            if taken:
                keys = [load.key for load in taken]
                self._taken[owner.id, work_id] = Taken(Lane.LOAD, entry, keys, loads=taken)
            for index, load in enumerate(loads):
                if index not in granted:
                    self._not_loaded(load)
            if taken:
                return work(Verb.LOAD, entry, keys, grant.slots)
        return None

    def _next_loads(self, max_chunks: int, max_bytes: int) -> list[Load]:
        """Of one namespace, each worker thread its share."""
        entry = self._loads[0].entry
        chunk_bytes = entry.namespace.chunk_bytes
        share = -(-len(self._loads) // self.spec.common.load_threads)
        count = max(1, min(max_chunks, max_bytes // chunk_bytes, share))
        loads: list[Load] = []
        while self._loads and len(loads) < count and self._loads[0].entry is entry:
            loads.append(self._loads.popleft())
        self._loads_bytes -= len(loads) * chunk_bytes
        return loads

    def _not_loaded(self, load: Load) -> None:
        """There is no slot for it: it is here by now, or is being stored, or there is no room."""
        here = load.key in load.entry.ready
        self.counters.load_refused_chunks += not here
        load.end(here)

    def _take_cascades(
        self, owner: Owner, work_id: int, max_chunks: int, max_bytes: int
    ) -> Work | None:
        threads = self.spec.common.store_threads
        while (batch := self.backlog.take(max_chunks, max_bytes, threads)) is not None:
            entry, keys = batch
            slots = {key: slot for key in keys if (slot := entry.ready.get(key)) is not None}
            self.counters.cascade_late_chunks += len(keys) - len(slots)
            self.leaving.difference_update(keys)
            packed = self._l1.lease(
                owner, work_id, LeaseKind.READ, list(slots.values()), is_use=False
            )
            if slots:
                self._taken[owner.id, work_id] = Taken(Lane.STORE, entry, list(slots))
                return work(Verb.STORE, entry, list(slots), packed)
        return None

    def _settle(self, taken: Taken, outcomes: bytes | None) -> None:
        """Tell whoever waits what became of the work; None: nothing did."""
        if taken.ask is not None:
            taken.ask.then(outcomes)
            return
        assert taken.entry is not None
        if outcomes is None:
            outcomes = bytes((FAILED,)) * len(taken.keys)
        done, failed = count(outcomes, DONE), count(outcomes, FAILED)
        chunk_bytes = taken.entry.namespace.chunk_bytes
        there = [key for key, outcome in zip(taken.keys, outcomes, strict=False) if outcome == DONE]
        self.known.add(there)
        if taken.lane == Lane.STORE:
            self.counters.cascaded_chunks += done
            self.counters.cascaded_bytes += done * chunk_bytes
            self.counters.cascade_failed_chunks += len(taken.keys) - done
            return
        self.known.discard(
            key for key, outcome in zip(taken.keys, outcomes, strict=False) if outcome != DONE
        )
        self.counters.loaded_chunks += done
        self.counters.loaded_bytes += done * chunk_bytes
        self.counters.load_failed_chunks += failed
        self.counters.load_absent_chunks += len(taken.keys) - done - failed
        for load in taken.loads:
            load.end(load.key in taken.entry.ready)
