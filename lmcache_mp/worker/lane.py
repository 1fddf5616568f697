"""A thread of a worker: takes work of one lane, does it, says how it went."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Iterator

from typing_extensions import override

import bus
from lmcache_mp.client.deadline import Deadline
from lmcache_mp.client.session import Link, Session
from lmcache_mp.errors import LeaseNotFound, NoSuchAdapter
from lmcache_mp.logging import init_logger
from lmcache_mp.messages import KEY_BYTES, SLOT_UNIT_BYTES
from lmcache_mp.tiering.messages import DONE, MAX_WORK, Lane, TakeWork, Verb, Work, WorkDone
from lmcache_mp.worker.health import Health
from lmcache_mp.worker.objects import Objects, padded

log = init_logger(__name__)

MAX_BYTES = 64 << 20
"""Of one piece of work, unless a single chunk is larger: what one thread leases at a time."""
MAX_CHUNKS = 32
PATIENCE_S = 20 * 86400.0
"""How long a thread waits for work on one call: as good as for ever; poll(2) takes 24 days."""
PAUSE_S = 0.1


class LaneThread(threading.Thread):
    """See the module. A daemon: the process does not wait for one that hangs in its adapter."""

    def __init__(
        self, adapter: str, lane: Lane, session: Session, objects: Objects, health: Health
    ) -> None:
        super().__init__(name=f"{lane.name.lower()} {adapter}", daemon=True)
        self.objects = objects
        self.busy_since_s: float | None = None
        """Since when its adapter has had the same object in hand."""
        self.not_wanted = False
        """The engine has no such adapter any more."""
        self._adapter = adapter
        self._lane = lane
        self._session = session
        self._health = health
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Take no more work."""
        self._stopping.set()

    @override
    def run(self) -> None:
        """Until stopped."""
        while not self._stopping.is_set() and not self.not_wanted:
            if not self._health.usable.wait(PAUSE_S):
                continue
            try:
                self._work_once()
            except NoSuchAdapter:
                self.not_wanted = True
            except bus.BusError as fault:
                log.debug("%s: %s", self.name, fault)
                self._session.lose_link()
                self._stopping.wait(PAUSE_S)

    def _work_once(self) -> None:
        link = self._session.link(Deadline(PATIENCE_S))
        chunks = MAX_WORK if self._lane == Lane.ASK else MAX_CHUNKS
        work_id = self._session.new_lease_id()
        try:
            request = TakeWork(self._adapter, self._lane, chunks, MAX_BYTES)
            work = self._work(link, request, work_id)
            outcomes = self._outcomes(link, work)
            self._say_done(WorkDone(self._adapter, work_id, outcomes))
        finally:
            self._session.held.discard(work_id)

    def _work(self, link: Link, request: TakeWork, work_id: int) -> Work:
        try:
            return link.client.start(request, work_id).result(PATIENCE_S)
        except bus.CallError:
            raise
        except bus.BusError:
            self._session.owe(work_id)  # it may have been given to us
            raise

    def _say_done(self, message: WorkDone) -> None:
        """To the engine that gave the work, or its successor, which knows it by its lease."""
        while not self._stopping.is_set():
            try:
                link = self._session.link(Deadline(PATIENCE_S))
                link.client.call(message, PATIENCE_S)
            except bus.Unavailable:
                self._session.lose_link()
                self._stopping.wait(PAUSE_S)
            except LeaseNotFound:
                return
            else:
                return

    def _outcomes(self, link: Link, work: Work) -> bytes:
        keys = [work.keys[at : at + KEY_BYTES] for at in range(0, len(work.keys), KEY_BYTES)]
        if work.verb == Verb.CLEAR:
            return self.objects.clear()  # takes as long as it takes
        if work.verb in (Verb.LOOKUP, Verb.DELETE):
            with self._in_hand():
                ask = self.objects.lookup if work.verb == Verb.LOOKUP else self.objects.delete
                return ask(keys)
        return bytes(self._each(link, work, keys))

    def _each(self, link: Link, work: Work, keys: list[bytes]) -> Iterator[int]:
        """Store or load one chunk after the other; their outcomes."""
        assert link.mapping is not None
        there = b""
        if work.verb == Verb.STORE:
            with self._in_hand():
                there = self.objects.lookup(keys)
        length = padded(work.chunk_bytes)
        for index, (key, address) in enumerate(zip(keys, array("I", work.slots), strict=True)):
            start = address * SLOT_UNIT_BYTES
            if work.verb == Verb.STORE and there[index] == DONE:
                self.objects.figures.skipped_objects += 1
                yield DONE
                continue
            whole = link.mapping.readable if work.verb == Verb.STORE else link.mapping.writable
            move = self.objects.store if work.verb == Verb.STORE else self.objects.load
            with self._in_hand(), whole[start : start + length] as slot:
                yield move(key, work.namespace, slot, work.chunk_bytes)

    def _in_hand(self) -> _InHand:
        return _InHand(self)


class _InHand:
    """Marks how long a thread has been in its adapter."""

    def __init__(self, thread: LaneThread) -> None:
        self._thread = thread

    def __enter__(self) -> None:
        self._thread.busy_since_s = time.monotonic()

    def __exit__(self, *exc_info: object) -> None:
        self._thread.busy_since_s = None
