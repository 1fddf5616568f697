"""L1: where chunks live in memory. A pure core, without sockets, threads or a clock of its own.

Reading order: `slot`, `slab`, `allocator` (places), `order` (eviction), `lease`, `ledger` (who may
touch what), `geometry`, `state_file` (what survives a crash), `index`, `reservations`, `tier` (the
verbs), `adopt`, `check`.
Around the core: `room`, `segment`, `populate`.
"""
