"""Everything that is said over the bus. `ALL` is the engine's vocabulary.

Keys travel as one buffer, 32 bytes each. A slot travels as its address: its offset in the L1
segment divided by `SLOT_UNIT_BYTES`, in one little-endian uint32 buffer. KV bytes never travel.

A lease's id is the call id of the request that asked for it, so that a client can give back what it
never saw granted.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from bus import Done, Message, Notice, Request
from lmcache_mp.namespace import Namespace

KEY_BYTES = 32
MAX_KEYS = 8192
"""Of one message: two million tokens in chunks of 256. More would hold up everybody else."""
SLOT_UNIT_BYTES = 4096

LeaseId = Annotated[int, Meta(ge=1)]
Keys = bytes
Slots = bytes


# --- sessions ------------------------------------------------------------------------------------


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """A file to map."""

    path: str
    size_bytes: int
    populated_bytes: int
    """So much of it, from the beginning, is backed by memory."""


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `Hello`."""

    epoch: int
    """Goes into the header of every later message of this connection."""
    server: str
    version: str
    l1_id: bytes
    """Another id than before: everything that was mapped and leased is gone."""
    segment: Segment
    chunk_tokens: int
    """The server's default, for engines that have none of their own."""
    leases: list[int]
    """Of the leases named in `Hello`, those that the server knows too; no other is left."""
    may_lease: bool
    reason: str
    """Why not, if not."""


class Hello(Request[Welcome], frozen=True, kw_only=True):
    """First message of a connection. Without `client_id`: an observer, for lookups and ops."""

    who: Annotated[str, Meta(max_length=128)]
    pid: int
    client_id: Annotated[bytes, Meta(max_length=16)] = b""
    """16 random bytes that also name the client's lock file `<run-dir>/clients/<hex>`."""
    lock_inode: int = 0
    boot_id: str = ""
    known_epoch: int = 0
    """The epoch this client was welcomed to last. If it is the server's still, this is one more
    connection of the client and leaves its leases alone."""
    leases: tuple[int, ...] = ()
    """Otherwise: what the client still holds. Others of its leases are taken back."""


class Goodbye(Request[Done], frozen=True):
    """The client ends: all that it holds is given back."""


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `RegisterNamespace`."""

    namespace_id: int


class RegisterNamespace(Request[Registered], frozen=True, kw_only=True):
    """Say what the slots look like; a namespace's id stands in the later messages."""

    namespace: Namespace


# --- the hot path --------------------------------------------------------------------------------


class LookupReply(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How many chunks, from the first on, are here."""

    l1_chunks: int
    l2_chunks: int = 0
    """Further chunks known to be in L2."""
    l2_pending_chunks: int = 0
    """Further chunks that L2 has not been asked for to the end."""

    @property
    def hit_chunks(self) -> int:
        """The longest prefix that a retrieve would bring."""
        return self.l1_chunks + self.l2_chunks


class Lookup(Request[LookupReply], frozen=True):
    """How much of a prompt is here? With `hold_s` what is here stays that long, as a hold."""

    namespace_id: int
    keys: Keys
    hold_s: Annotated[float, Meta(ge=0, le=600)] = 0.0


class StoreGrant(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where to write. Chunks that are here, or that another is writing, are left out."""

    indices: bytes
    """Positions in the request's keys, uint32 little-endian, ascending."""
    slots: Slots
    """As many slot addresses; this shard's bytes begin at `slot + shard * shard_bytes`."""
    no_room_chunks: int
    """Missing chunks, last ones first, for which no room could be made."""


class PrepareStore(Request[StoreGrant], frozen=True):
    """Reserve slots for the chunks that are missing. Nothing is visible before the commit."""

    namespace_id: int
    keys: Keys
    shard: int = 0
    tenant: Annotated[bytes, Meta(max_length=8)] = b""


class Committed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Answer to `CommitStore`."""

    chunks: int
    """How many were taken; the rest was cleared or deleted meanwhile."""


class CommitStore(Request[Committed], frozen=True):
    """Publish what was written, abort the rest of the lease."""

    lease_id: LeaseId
    written: bytes | None = None
    """Positions in the grant, uint32 little-endian, ascending; all of them if None."""


class RetrieveGrant(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The prefix that is here, held until released."""

    slots: Slots


class PrepareRetrieve(Request[RetrieveGrant], frozen=True):
    """Hold the longest prefix for reading."""

    namespace_id: int
    keys: Keys


class Release(Notice, frozen=True):
    """Give a lease back: a read, a pin or a hold ends, an uncommitted store aborts."""

    lease_id: LeaseId


# --- keeping and dropping ------------------------------------------------------------------------


class Pinned(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Answer to `Pin`."""

    chunks: int


class Pin(Request[Pinned], frozen=True):
    """Keep the longest prefix from eviction, until released or the client is gone."""

    namespace_id: int
    keys: Keys


class Touched(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Answer to `Touch`."""

    chunks: int


class Touch(Request[Touched], frozen=True):
    """Mark the longest prefix as just used."""

    namespace_id: int
    keys: Keys


class Deleted(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Answer to `Delete`."""

    chunks: int


class Delete(Request[Deleted], frozen=True):
    """Forget these chunks, wherever they stand in the list. What is leased stays readable."""

    namespace_id: int
    keys: Keys


class Cleared(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `Clear`."""

    cleared_chunks: int


class Clear(Request[Cleared], frozen=True, kw_only=True):
    """Forget every chunk, of one namespace or of all. What is leased stays readable."""

    namespace_id: int | None = None


# --- operations ----------------------------------------------------------------------------------


class ProcessInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the server."""

    pid: int
    state: str = "running"
    restarts: int = 0
    uptime_s: float = 0.0
    address: str = ""
    note: str = ""
    """For example why it was restarted last."""


class Heartbeat(Request[Done], frozen=True, kw_only=True):
    """Does the loop run? The supervisor says with it what it watches."""

    processes: dict[str, ProcessInfo] | None = None


class Populated(Request[Done], frozen=True, kw_only=True):
    """From the helper process: so much of the segment, from its beginning, is backed by memory."""

    l1_id: bytes
    populated_bytes: int
    error: str = ""
    """Why it stopped before the end, if it did."""


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


class Status(Request[StatusReport], frozen=True):
    """What is going on?"""


class ConfigReport(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `GetConfig`: values as YAML would spell them, secrets left out."""

    config: dict[str, str | int | float | bool | list[str] | None]


class GetConfig(Request[ConfigReport], frozen=True):
    """With which values does this server run?"""


class CheckReport(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `Check`: every broken invariant as a sentence; empty is good."""

    faults: list[str]
    checked_slots: int


class Check(Request[CheckReport], frozen=True):
    """Walk records, index, allocator and leases and compare them. Takes a while on a large L1."""


class Drain(Request[Done], frozen=True):
    """Grant nothing new from now on; what is leased may be finished."""


ALL: tuple[type[Message], ...] = (
    Hello,
    Goodbye,
    RegisterNamespace,
    Lookup,
    PrepareStore,
    CommitStore,
    PrepareRetrieve,
    Release,
    Pin,
    Touch,
    Delete,
    Clear,
    Heartbeat,
    Populated,
    Status,
    GetConfig,
    Check,
    Drain,
)
