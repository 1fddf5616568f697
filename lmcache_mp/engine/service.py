"""What the engine answers: a handler per message, each a few lines over `L1`."""

from __future__ import annotations

import time

import lmcache_mp
from bus import DEFERRED, Call, Done, Server
from lmcache_mp import messages as m
from lmcache_mp.config import Config
from lmcache_mp.engine.clients import Clients
from lmcache_mp.engine.l2 import L2
from lmcache_mp.engine.open_calls import OpenCalls
from lmcache_mp.engine.report import Facts, status_report
from lmcache_mp.errors import Draining, LeaseNotFound
from lmcache_mp.l1.check import all_slots, check
from lmcache_mp.l1.index import NamespaceEntry
from lmcache_mp.l1.lease import LeaseKind, Owner
from lmcache_mp.l1.tier import L1, split_keys
from lmcache_mp.logging import init_logger

log = init_logger(__name__)

LIVENESS_EVERY_S = 0.2
SWEEP_EVERY_S = 2.0
TICK_EVERY_S = 0.05


class Service:
    """The handlers of one engine and what they share."""

    def __init__(
        self, server: Server, l1: L1, l2: L2, clients: Clients, config: Config, facts: Facts
    ) -> None:
        self.draining = False
        self._l1 = l1
        self._l2 = l2
        self._server = server
        self._clients = clients
        self._config = config
        self._facts = facts
        self._populating = facts.populated_bytes < facts.capacity_bytes
        server.on_undeliverable = self.undeliverable
        self._waiting_for_memory: OpenCalls[tuple[Call, m.PrepareStore]] = OpenCalls(
            config.max_open_calls
        )
        """Stores that came before the first page was there."""
        clients.on_gone.append(self._client_gone)
        server.on(m.Hello, self.hello)
        server.on(m.Goodbye, self.goodbye)
        server.on(m.RegisterNamespace, self.register_namespace)
        server.on(m.Lookup, self.lookup)
        server.on(m.PrepareStore, self.prepare_store)
        server.on(m.CommitStore, self.commit_store)
        server.on(m.PrepareRetrieve, self.prepare_retrieve)
        server.on(m.Pin, self.pin)
        server.on(m.Touch, self.touch)
        server.on(m.Delete, self.delete)
        server.on(m.Clear, self.clear)
        server.on(m.Heartbeat, self.heartbeat)
        server.on(m.Populated, self.populated)
        server.on(m.Status, self.status)
        server.on(m.GetConfig, self.get_config)
        server.on(m.Check, self.check)
        server.on(m.Drain, self.drain)
        server.on_notice(m.Release, self.release)
        server.every(LIVENESS_EVERY_S, clients.bury_the_dead)
        server.every(SWEEP_EVERY_S, clients.sweep)
        server.every(TICK_EVERY_S, l1.tick)

    # --- sessions ---

    def hello(self, call: Call, hello: m.Hello) -> m.Welcome:
        """Welcome a client; settle what it holds if it comes from an earlier epoch."""
        reason = "it said hello as an observer"
        leases: list[int] = []
        if hello.client_id:
            reason = self._clients.welcome(call, hello)
            owner = self._clients.find(call)
            if owner is not None and hello.known_epoch != self._server.epoch:
                leases = self._l1.keep_only(owner, hello.leases)
            elif owner is not None:
                leases = sorted(owner.leases)
        return m.Welcome(
            epoch=self._server.epoch,
            server=self._config.name,
            version=lmcache_mp.__version__,
            l1_id=b"" if reason else self._l1.state.geometry.l1_id,
            segment=m.Segment(
                path="" if reason else self._facts.path,
                size_bytes=self._facts.capacity_bytes,
                populated_bytes=self._facts.populated_bytes,
            ),
            chunk_tokens=self._config.chunk_tokens,
            leases=leases,
            may_lease=not reason,
            reason=reason,
        )

    def goodbye(self, call: Call, message: m.Goodbye) -> Done:
        self._clients.goodbye(call)
        return Done()

    def register_namespace(self, call: Call, message: m.RegisterNamespace) -> m.Registered:
        return m.Registered(namespace_id=self._l1.namespaces.register(message.namespace).id)

    # --- the hot path ---

    def lookup(self, call: Call, message: m.Lookup) -> m.LookupReply:
        entry = self._l1.namespaces[message.namespace_id]
        owner = self._clients.find(call) if message.hold_s else None
        if owner is None:
            found = self._l1.lookup(entry, message.keys)
        else:
            until_s = time.monotonic() + message.hold_s
            found = self._l1.hold(owner, call.call_id, entry, message.keys, until_s)
        if found * m.KEY_BYTES < len(message.keys) and self._l2.tiers.asked:
            return self._l2.lookup(call, entry, message, found)
        return m.LookupReply(found)

    def prepare_store(self, call: Call, message: m.PrepareStore) -> m.StoreGrant:
        self._refuse_if_draining()
        owner, entry = self._clients.of(call), self._l1.namespaces[message.namespace_id]
        if self._populating and not self._l1.allocator.pages.populated:
            self._waiting_for_memory.add(owner.id, call.call_id, (call, message))
            return DEFERRED  # type: ignore[no-any-return]
        return self._l1.prepare_store(
            owner,
            call.call_id,
            entry,
            message.keys,
            message.shard,
            message.tenant,
            time.monotonic(),
        )

    def commit_store(self, call: Call, message: m.CommitStore) -> m.Committed:
        owner = self._clients.of(call)
        now_s = time.monotonic()
        return m.Committed(self._l1.commit_store(owner, message.lease_id, message.written, now_s))

    def prepare_retrieve(self, call: Call, message: m.PrepareRetrieve) -> m.RetrieveGrant:
        self._refuse_if_draining()
        owner, entry = self._clients.of(call), self._l1.namespaces[message.namespace_id]

        def grant() -> m.RetrieveGrant:
            return m.RetrieveGrant(
                self._l1.acquire(owner, call.call_id, LeaseKind.READ, entry, message.keys)
            )

        if self._l2.promote(call, owner, entry, message, grant):
            return DEFERRED  # type: ignore[no-any-return]
        return grant()

    def release(self, call: Call, message: m.Release) -> None:
        owner = self._clients.of(call)
        if self._waiting_for_memory.pop(owner.id, message.lease_id) is not None:
            return  # its caller has given up
        if self._l2.cancel(owner, message.lease_id):
            return
        try:
            self._l1.release(owner, message.lease_id)
        except LeaseNotFound:  # of a call that was refused or lost: there was nothing to give back
            log.debug("release of no lease client=%s id=%d", owner.name, message.lease_id)

    def undeliverable(self, call: Call) -> None:
        """An answer that its caller did not take: what it granted ends."""
        owner = self._clients.find(call) or self._l2.answered
        if owner is None:
            return
        if call.call_id in owner.leases:
            self._l1.release(owner, call.call_id)
        self._l2.lost(owner, call.call_id)

    # --- keeping and dropping ---

    def pin(self, call: Call, message: m.Pin) -> m.Pinned:
        self._refuse_if_draining()
        owner, entry = self._clients.of(call), self._l1.namespaces[message.namespace_id]
        packed = self._l1.acquire(owner, call.call_id, LeaseKind.PIN, entry, message.keys)
        return m.Pinned(len(packed) // 4)

    def touch(self, call: Call, message: m.Touch) -> m.Touched:
        return m.Touched(self._l1.touch(self._l1.namespaces[message.namespace_id], message.keys))

    def delete(self, call: Call, message: m.Delete) -> m.Deleted:
        entry = self._l1.namespaces[message.namespace_id]
        deleted = self._l1.delete(entry, message.keys)
        self._l2.tiers.forget(entry, split_keys(message.keys))
        return m.Deleted(deleted)

    def clear(self, call: Call, message: m.Clear) -> m.Cleared:
        entries: list[NamespaceEntry] = list(self._l1.namespaces.entries.values())
        if message.namespace_id is not None:
            entries = [self._l1.namespaces[message.namespace_id]]
        cleared = sum(self._l1.clear(entry) for entry in entries)
        log.info("cleared chunks=%d namespaces=%d", cleared, len(entries))
        return m.Cleared(cleared_chunks=cleared)

    # --- operations ---

    def heartbeat(self, call: Call, message: m.Heartbeat) -> m.Beat:
        if message.processes is not None:
            self._facts.processes = message.processes
        return m.Beat(l2=self._l2.wanted)

    def populated(self, call: Call, message: m.Populated) -> Done:
        state, pages = self._l1.state, self._l1.allocator.pages
        if message.l1_id != state.geometry.l1_id:
            return Done()
        populated_bytes = min(message.populated_bytes, state.geometry.l1_bytes)
        if populated_bytes > state.populated_bytes:
            state.populated_bytes = self._facts.populated_bytes = populated_bytes
            pages.populate(populated_bytes // state.geometry.page_bytes)
        if message.error:
            self.population_failed(message.error)
        elif pages.populated == state.geometry.pages:
            self._populating = False
            log.info("l1 populated bytes=%d", message.populated_bytes)
        if pages.populated:
            self._serve_those_who_wait()
        return Done()

    def population_failed(self, why: str) -> None:
        """L1 stays as large as it has become."""
        self._facts.populate_error = why
        self._populating = False
        log.error(
            "l1 is smaller than asked for: populated=%d of %d bytes: %s",
            self._facts.populated_bytes,
            self._facts.capacity_bytes,
            why,
        )
        self._serve_those_who_wait()

    def status(self, call: Call, message: m.Status) -> m.StatusReport:
        return status_report(
            self._facts,
            self._config,
            self._server,
            self._l1,
            self._l2.tiers,
            self._clients,
            self.draining,
        )

    def get_config(self, call: Call, message: m.GetConfig) -> m.ConfigReport:
        return m.ConfigReport(config=self._config.shown())

    def check(self, call: Call, message: m.Check) -> m.CheckReport:
        return m.CheckReport(
            faults=check(self._l1), checked_slots=sum(1 for _ in all_slots(self._l1))
        )

    def drain(self, call: Call, message: m.Drain) -> Done:
        self.start_draining()
        return Done()

    def start_draining(self) -> None:
        """Grant nothing new; what is leased may be finished."""
        if not self.draining:
            self.draining = True
            log.info("draining leases=%d", self.open_leases())
            self._serve_those_who_wait()
            self._l2.drain()

    def open_leases(self) -> int:
        """Leases that a stop waits for."""
        awaited = (LeaseKind.READ, LeaseKind.WRITE)
        owners = self._l1.ledger.owners.values()
        return sum(lease.kind in awaited for owner in owners for lease in owner.leases.values())

    def _refuse_if_draining(self) -> None:
        if self.draining:
            raise Draining("the server is stopping and grants nothing new")

    def _serve_those_who_wait(self) -> None:
        for call, message in self._waiting_for_memory.pop_all():
            call.serve(self.prepare_store, message)

    def _client_gone(self, owner: Owner) -> None:
        self._waiting_for_memory.pop_all_of(owner.id)
