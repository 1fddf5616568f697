"""How an engine comes to its L1: what an earlier one left, if that can be used, or a new one."""

from __future__ import annotations

import gc
import time

from lmcache_mp.access import group_id
from lmcache_mp.config import Config
from lmcache_mp.engine.report import Facts
from lmcache_mp.l1.adopt import AdoptionUnsafe, adopt
from lmcache_mp.l1.room import default_l1_bytes
from lmcache_mp.l1.segment import L1Store, L1Unusable, open_store, recorded_l1_bytes
from lmcache_mp.l1.tier import L1
from lmcache_mp.liveness import living_clients
from lmcache_mp.logging import init_logger
from lmcache_mp.rundir import L1Files, RunDir
from lmcache_mp.units import Size

log = init_logger(__name__)


def adopted_or_new(
    run_dir: RunDir, config: Config, *, cold: bool
) -> tuple[L1Store, L1, set[bytes], Facts]:
    """The L1 of this engine, the living clients that hold leases, and what became of the records.

    Raises `L1Unusable` or `RunDirError`.
    """
    living = living_clients(run_dir.clients)
    store = _open(config, adoptable=config.keep_l1 is not False and not cold)
    l1 = L1(store.state, policy=config.eviction_policy, max_leases=config.max_leases)
    dropped: dict[str, int] = {}
    if store.adoptable:
        try:
            dropped = _adopt(l1, living)
        except AdoptionUnsafe as reason:
            log.error("starting with an empty l1: %s", reason)
            dropped = {str(reason): 1}
            store.close()
            store = _open(config, adoptable=False)
            l1 = L1(store.state, policy=config.eviction_policy, max_leases=config.max_leases)
            gc.collect()  # slots and slabs know each other, and nobody else collects
    elif store.cold_reason:
        log.warning("starting with an empty l1: %s", store.cold_reason)
        dropped = {store.cold_reason: 1}
    facts = Facts(
        path=str(store.files.segment),
        capacity_bytes=store.state.geometry.l1_bytes,
        populated_bytes=store.state.populated_bytes,
        run_dir=str(run_dir.path),
        adopted_chunks=sum(len(entry.ready) for entry in l1.namespaces.entries.values()),
        dropped_records=dropped,
    )
    return store, l1, living.intersection(l1.ledger.owners), facts


def _adopt(l1: L1, living: set[bytes]) -> dict[str, int]:
    started_s = time.monotonic()
    dropped = dict(adopt(l1, living, started_s))
    log.info(
        "adopted l1 chunks=%d leases=%d dropped=%s seconds=%.3f",
        sum(len(entry.ready) for entry in l1.namespaces.entries.values()),
        sum(len(owner.leases) for owner in l1.ledger.owners.values()),
        dropped,
        time.monotonic() - started_s,
    )
    return dropped


def _open(config: Config, *, adoptable: bool) -> L1Store:
    files = L1Files.of(config.l1_dir, config.name)
    group = group_id(config.access_group)
    if config.l1_size is not None:
        return open_store(files, int(config.l1_size), adopt=adoptable, group=group)
    recorded = recorded_l1_bytes(files) if adoptable else None
    if recorded is not None:  # what is there has been sized before
        return open_store(files, recorded, adopt=True, group=group)
    try:
        size = default_l1_bytes(files.segment.parent)
    except OSError as fault:
        raise L1Unusable(
            f"L1 directory {config.l1_dir}: {fault.strerror}: choose another with --l1-dir"
        ) from None
    log.info("l1 is half of what is free in %s: %s", config.l1_dir, Size(size))
    return open_store(files, size, adopt=adoptable, group=group)
