"""The engine's account of itself."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

import lmcache_mp
from bus import Server
from lmcache_mp import messages as m
from lmcache_mp.config import Config
from lmcache_mp.engine.clients import Clients
from lmcache_mp.l1.lease import LeaseKind
from lmcache_mp.l1.tier import L1
from lmcache_mp.messages import SLOT_UNIT_BYTES
from lmcache_mp.tiering.station import Station
from lmcache_mp.tiering.status import L2Status
from lmcache_mp.tiering.tiers import Tiers


@dataclass(slots=True)
class Facts:
    """What the engine knows of its surroundings."""

    path: str
    """Of the segment."""
    capacity_bytes: int
    populated_bytes: int
    run_dir: str
    addresses: list[str] = field(default_factory=list)
    adopted_chunks: int = 0
    dropped_records: dict[str, int] = field(default_factory=dict)
    populate_error: str = ""
    processes: dict[str, m.ProcessInfo] = field(default_factory=dict)
    """As the supervisor told last."""
    started_s: float = field(default_factory=time.monotonic)


def status_report(
    facts: Facts,
    config: Config,
    server: Server,
    l1: L1,
    tiers: Tiers,
    clients: Clients,
    draining: bool,
) -> m.StatusReport:
    """Answer to `Status`."""
    uptime_s = time.monotonic() - facts.started_s
    own = m.ProcessInfo(pid=os.getpid(), uptime_s=uptime_s)
    return m.StatusReport(
        server=config.name,
        version=lmcache_mp.__version__,
        state="draining" if draining else "ready",
        epoch=server.epoch,
        uptime_s=uptime_s,
        run_dir=facts.run_dir,
        processes={"engine": own, **facts.processes},
        l1=_l1_status(facts, l1),
        counters=_counters(l1),
        bus=m.BusStatus(
            addresses=facts.addresses,
            messages=server.counters.messages,
            errors=server.counters.errors,
            not_well_framed=server.counters.not_well_framed,
            undeliverable=server.counters.undeliverable,
            refused=server.counters.refused,
        ),
        clients=[
            m.ClientStatus(
                who=client.who,
                pid=client.pid,
                client=client.name,
                connections=len(client.peers),
                leases=len(client.owner.leases),
                leased_chunks=sum(len(lease.slots) for lease in client.owner.leases.values()),
            )
            for client in clients.by_id.values()
        ],
        namespaces=[
            m.NamespaceStatus(
                namespace_id=entry.id, namespace=entry.namespace, ready_chunks=len(entry.ready)
            )
            for entry in l1.namespaces.entries.values()
        ],
        l2=[_l2_status(station) for station in tiers.stations.values()],
    )


def _l2_status(station: Station) -> L2Status:
    return L2Status(
        name=station.name,
        state=station.state.value,
        error=station.error,
        spec=station.spec.shown,
        pid=station.pid,
        queued_bytes=station.backlog.bytes,
        queued_loads=station.queued_loads,
        counters=station.counters,
        figures=station.figures,
    )


def _l1_status(facts: Facts, l1: L1) -> m.L1Status:
    entries = l1.namespaces.entries.values()
    return m.L1Status(
        path=facts.path,
        capacity_bytes=facts.capacity_bytes,
        populated_bytes=facts.populated_bytes,
        used_bytes=l1.allocator.used_units * SLOT_UNIT_BYTES,
        page_bytes=l1.state.geometry.page_bytes,
        ready_chunks=sum(len(entry.ready) for entry in entries),
        incomplete_chunks=sum(len(entry.incomplete) for entry in entries),
        leased_chunks=_leased_chunks(l1),
        eviction_policy=l1.policy,
        adopted_chunks=facts.adopted_chunks,
        dropped_records=facts.dropped_records,
        populate_error=facts.populate_error or l1.allocator.no_records,
    )


def _leased_chunks(l1: L1) -> int:
    """Chunks under leases other than holds; one that has several counts as often."""
    owners = l1.ledger.owners.values()
    leases = (lease for owner in owners for lease in owner.leases.values())
    return sum(len(lease.slots) for lease in leases if lease.kind != LeaseKind.HOLD)


def _counters(l1: L1) -> m.CacheCounters:
    counters = l1.counters
    return m.CacheCounters(
        lookup_chunks=counters.lookup_chunks,
        hit_chunks=counters.hit_chunks,
        retrieved_chunks=counters.retrieved_chunks,
        stored_chunks=counters.stored_chunks,
        stored_bytes=counters.stored_bytes,
        retrieved_bytes=counters.retrieved_bytes,
        evicted_chunks=l1.allocator.evictions,
        aborted_chunks=counters.aborted_chunks,
        no_room_chunks=counters.no_room_chunks,
    )
