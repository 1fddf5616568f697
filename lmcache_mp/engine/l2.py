"""What the engine answers about L2: to workers, and to clients whose prompt is there.

A call that cannot be answered yet stays open: a worker's thread without work, a retrieve whose
chunks are on their way.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from bus import DEFERRED, Call, Done, Server
from lmcache_mp.config import Config
from lmcache_mp.engine.attachments import Attachments
from lmcache_mp.engine.clients import Clients
from lmcache_mp.engine.open_calls import OpenCalls
from lmcache_mp.errors import NoSuchAdapter
from lmcache_mp.l1.index import NamespaceEntry
from lmcache_mp.l1.lease import Owner
from lmcache_mp.l1.tier import L1, split_keys
from lmcache_mp.logging import init_logger
from lmcache_mp.messages import Lookup as LookupMessage
from lmcache_mp.messages import LookupReply, PrepareRetrieve, RetrieveGrant
from lmcache_mp.rundir import RunDir
from lmcache_mp.tiering import messages as m
from lmcache_mp.tiering.promotion import Promotion
from lmcache_mp.tiering.search import Located
from lmcache_mp.tiering.station import Station
from lmcache_mp.tiering.tiers import Tiers

log = init_logger(__name__)

TICK_EVERY_S = 0.02
PREFETCH_S = 60.0
"""How long chunks that were prefetched are kept for their neighbours."""


@dataclass(slots=True, eq=False)
class Taker:
    """A worker's thread that waits for work."""

    call: Call
    owner: Owner
    message: m.TakeWork


@dataclass(slots=True, eq=False)
class WaitingLookup:
    """A lookup that waits for what L2 has to say."""

    call: Call
    l1_chunks: int
    known: Located
    pending: int
    until_s: float


class L2:
    """The handlers, and the calls that wait."""

    def __init__(
        self,
        server: Server,
        l1: L1,
        clients: Clients,
        run_dir: RunDir,
        config: Config,
    ) -> None:
        self.tiers = Tiers(l1, self._feed)
        self._l1 = l1
        self._lookups: OpenCalls[WaitingLookup] = OpenCalls(config.max_open_calls)
        self._clients = clients
        self._takers: dict[tuple[str, m.Lane], deque[Taker]] = {}
        self._idle: OpenCalls[Taker] = OpenCalls(config.max_open_calls)
        """The same takers, by their client."""
        self.answered: Owner | None = None
        """Whom an answer is just being sent to, whose connection may be forgotten already."""
        self._promotions: OpenCalls[Promotion] = OpenCalls(config.max_open_calls)
        self._attachments = Attachments(server, self.tiers, run_dir, config.l2)
        clients.on_gone.append(self._client_gone)
        server.on(m.TakeWork, self.take_work)
        server.on(m.WorkDone, self.work_done)
        server.on(m.WorkerReport, self.worker_report)
        server.on(m.Prefetch, self.prefetch)
        server.every(TICK_EVERY_S, self._tick)

    @property
    def wanted(self) -> list[str]:
        """The adapters that are to have a worker."""
        return list(self.tiers.stations)

    # --- for the other handlers ---

    def lookup(
        self, call: Call, entry: NamespaceEntry, message: LookupMessage, found: int
    ) -> LookupReply:
        """The answer about a prompt of which L1 has `found` chunks, and not all."""
        names = split_keys(message.keys)[found:]
        known, pending = self.tiers.further(entry, names, ask=not message.wait_s)
        if not pending or not message.wait_s:
            return _reply(found, known, pending)
        lookup = WaitingLookup(call, found, known, pending, time.monotonic() + message.wait_s)

        def then(located: Located) -> None:
            if self._lookups.pop(call.peer, call.call_id) is not None:
                call.answer(_reply(found, located, 0))

        self._lookups.add(call.peer, call.call_id, lookup)
        self.tiers.search(entry, names, then)
        return DEFERRED  # type: ignore[no-any-return]

    def promote(
        self,
        call: Call,
        owner: Owner,
        entry: NamespaceEntry,
        message: PrepareRetrieve,
        grant: Callable[[], RetrieveGrant],
    ) -> bool:
        """Bring what L2 has of a prompt to L1 and answer with what `grant` then returns.

        False if there is nothing to wait for: all of it is in L1, or no adapter can be asked.
        """
        if not message.wait_s or not self.tiers.asked:
            return False
        names = split_keys(message.keys)
        if len(entry.prefix(names)) == len(names):
            return False

        def then() -> None:
            self._promotions.pop(owner.id, call.call_id)
            call.serve(lambda *_: grant(), message)

        until_s = time.monotonic() + message.wait_s
        promotion = Promotion(self.tiers, entry, names, until_s, then)
        self._promotions.add(owner.id, call.call_id, promotion)
        self.tiers.start(promotion)
        return True

    def prefetch(self, call: Call, message: m.Prefetch) -> m.Prefetched:
        """Nobody waits for it: what has arrived stays as long as anything that was just used."""
        entry = self._l1.namespaces[message.namespace_id]
        names = split_keys(message.keys)
        here = len(entry.prefix(names))
        if here < len(names):
            until_s = time.monotonic() + PREFETCH_S
            self.tiers.promote(entry, names, until_s, lambda: None)
        return m.Prefetched(here)

    def cancel(self, owner: Owner, call_id: int) -> bool:
        """The caller of a retrieve has given up; whether one was waiting."""
        promotion = self._promotions.pop(owner.id, call_id)
        if promotion is None:
            return False
        promotion.cancel()
        return True

    def drain(self) -> None:
        """Whoever waits for L2 gets what is here."""
        for promotion in list(self._promotions):
            promotion.end()
        for lookup in self._lookups.pop_all():
            lookup.call.answer(_reply(lookup.l1_chunks, lookup.known, lookup.pending))

    def lost(self, owner: Owner, work_id: int) -> None:
        """An answer did not reach a client; if it was work, somebody else is to do it."""
        for station in self.tiers.stations.values():
            station.lost(owner, work_id)

    # --- workers ---

    def take_work(self, call: Call, message: m.TakeWork) -> m.Work:
        owner, station = self._clients.of(call), self.tiers.find(message.adapter)
        taker = Taker(call, owner, message)
        work = self._take(station, taker)
        if work is None:
            self._idle.add(owner.id, call.call_id, taker)
            self._takers.setdefault((station.name, message.lane), deque()).append(taker)
            return DEFERRED  # type: ignore[no-any-return]
        return work

    def work_done(self, call: Call, message: m.WorkDone) -> Done:
        owner, station = self._clients.of(call), self.tiers.find(message.adapter)
        self.tiers.done(station, owner, message.work_id, message.outcomes, time.monotonic())
        return Done()

    def worker_report(self, call: Call, message: m.WorkerReport) -> Done:
        owner, station = self._clients.of(call), self.tiers.find(message.adapter)
        station.figures = message.figures
        error = None if message.open else message.error
        if error and error != station.error:
            log.warning("l2 adapter cannot be used name=%s: %s", station.name, error)
        if station.reported(owner, message.pid, error):
            log.info("l2 adapter open name=%s pid=%d", station.name, message.pid)
            self.tiers.opened(station)
        self._attachments.reported(station, error)
        return Done()

    # --- inside ---

    def _take(self, station: Station, taker: Taker) -> m.Work | None:
        message = taker.message
        return station.take(
            message.lane,
            taker.owner,
            taker.call.call_id,
            message.max_chunks,
            message.max_bytes,
            time.monotonic(),
        )

    def _feed(self, station: Station, lane: m.Lane) -> None:
        """A station has work: give it to the threads that wait."""
        takers = self._takers.get((station.name, lane))
        while takers:
            taker = takers.popleft()
            work = self._take(station, taker)
            if work is None:
                takers.appendleft(taker)
                return
            self._answer(taker, work)

    def _answer(self, taker: Taker, work: m.Work) -> None:
        self._idle.pop(taker.owner.id, taker.call.call_id)
        self.answered = taker.owner
        taker.call.answer(work)
        self.answered = None

    def _client_gone(self, owner: Owner) -> None:
        for taker in self._idle.pop_all_of(owner.id):
            self._takers[taker.message.adapter, taker.message.lane].remove(taker)
        for promotion in self._promotions.pop_all_of(owner.id):
            promotion.cancel()
        self.tiers.worker_gone(owner)

    def _tick(self, now_s: float) -> None:
        self.tiers.tick(now_s)
        for lookup in [lookup for lookup in self._lookups if now_s >= lookup.until_s]:
            self._lookups.pop(lookup.call.peer, lookup.call.call_id)
            lookup.call.answer(_reply(lookup.l1_chunks, lookup.known, lookup.pending))
        for station in self.tiers.stations.values():
            station.start_loads()  # if there was no lease for them
        self._attachments.tick(now_s)
        gone = [which for which in self._takers if which[0] not in self.tiers.stations]
        for which in gone:
            for taker in self._takers.pop(which):
                self._idle.pop(taker.owner.id, taker.call.call_id)
                taker.call.fail(NoSuchAdapter(f"adapter {which[0]} is attached no more"))


def _reply(l1_chunks: int, located: Located, pending: int) -> LookupReply:
    adapters = Counter(station.name for _, station in located if station is not None)
    return LookupReply(l1_chunks, len(located), pending, dict(adapters))
