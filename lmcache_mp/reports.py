"""What a server tells about itself: the answer to `Status`, and its parts."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from lmcache_mp.namespace import Namespace
from lmcache_mp.tiering.status import L2Status

MAX_SENTENCE = 4096


class ProcessInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the server."""

    pid: int
    state: Annotated[str, Meta(max_length=64)] = "running"
    restarts: int = 0
    uptime_s: float = 0.0
    address: Annotated[str, Meta(max_length=MAX_SENTENCE)] = ""
    note: Annotated[str, Meta(max_length=MAX_SENTENCE)] = ""
    """For example why it was restarted last."""


class L1Status(msgspec.Struct, frozen=True, kw_only=True):
    """State of the memory tier. Chunks: free + incomplete + ready = what the carved slots hold."""

    path: str
    capacity_bytes: int
    populated_bytes: int
    used_bytes: int
    """Bytes of slots that hold, or are about to hold, a chunk."""
    page_bytes: int
    ready_chunks: int
    incomplete_chunks: int
    leased_chunks: int
    eviction_policy: str
    adopted_chunks: int
    """Found in the state file at the start."""
    dropped_records: dict[str, int]
    """Records that were not adopted, by reason."""
    populate_error: str = ""


class CacheCounters(msgspec.Struct, frozen=True, kw_only=True):
    """Totals since the start of the engine process."""

    lookup_chunks: int
    hit_chunks: int
    retrieved_chunks: int
    stored_chunks: int
    stored_bytes: int
    retrieved_bytes: int
    evicted_chunks: int
    aborted_chunks: int
    no_room_chunks: int


class ClientStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One client of the bus that can hold leases."""

    who: str
    pid: int
    client: str
    """Digest of the client's id."""
    connections: int
    leases: int
    leased_chunks: int


class NamespaceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One namespace and what it occupies."""

    namespace_id: int
    namespace: Namespace
    ready_chunks: int


class BusStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the bus saw since the start of the engine process."""

    addresses: list[str]
    messages: int
    errors: int
    not_well_framed: int
    undeliverable: int
    refused: int
    """Connections that never became a peer's: no right to it, another protocol, no handshake."""


class StatusReport(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `Status`, and the body of GET /status."""

    server: str
    version: str
    state: str
    """`ready` or `draining`."""
    epoch: int
    uptime_s: float
    run_dir: str
    processes: dict[str, ProcessInfo]
    l1: L1Status
    counters: CacheCounters
    bus: BusStatus
    clients: list[ClientStatus]
    namespaces: list[NamespaceStatus]
    l2: list[L2Status]
    """In the order in which they are asked."""


class ConfigReport(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `GetConfig`: values as YAML would spell them, secrets left out."""

    config: dict[str, Any]


class CheckReport(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `Check`: every broken invariant as a sentence; empty is good."""

    faults: list[str]
    checked_slots: int
