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
from lmcache_mp.namespace import MAX_SHARDS, Namespace
from lmcache_mp.reports import MAX_SENTENCE
from lmcache_mp.reports import BusStatus as BusStatus
from lmcache_mp.reports import CacheCounters as CacheCounters
from lmcache_mp.reports import CheckReport as CheckReport
from lmcache_mp.reports import ClientStatus as ClientStatus
from lmcache_mp.reports import ConfigReport as ConfigReport
from lmcache_mp.reports import L1Status as L1Status
from lmcache_mp.reports import NamespaceStatus as NamespaceStatus
from lmcache_mp.reports import ProcessInfo as ProcessInfo
from lmcache_mp.reports import StatusReport as StatusReport

KEY_BYTES = 32
MAX_KEYS = 8192
"""Of one message: two million tokens in chunks of 256. More would hold up everybody else."""
MAX_LEASES = 1 << 20
"""Of one client, whatever the settings say."""
MAX_PROCESSES = 256
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
    """Another id than before: everything that was mapped and leased is gone. Empty, as the path of
    the segment, for who is given no bytes."""
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
    boot_id: Annotated[str, Meta(max_length=64)] = ""
    known_epoch: int = 0
    """The epoch this client was welcomed to last. If it is the server's still, this is one more
    connection of the client and leaves its leases alone."""
    leases: Annotated[tuple[int, ...], Meta(max_length=MAX_LEASES)] = ()
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
    """Further chunks that L2 is just being asked about."""
    adapters: dict[str, int] = {}
    """The chunks of L2, by the name of the adapter that has them."""

    @property
    def hit_chunks(self) -> int:
        """The longest prefix that a retrieve would bring."""
        return self.l1_chunks + self.l2_chunks


class Lookup(Request[LookupReply], frozen=True):
    """How much of a prompt is here? With `hold_s` what is in L1 stays that long, as a hold.

    With `wait_s` the answer waits up to so long for what L2 has to say; else it comes at once.
    """

    namespace_id: int
    keys: Keys
    hold_s: Annotated[float, Meta(ge=0, le=600)] = 0.0
    wait_s: Annotated[float, Meta(ge=0, le=600)] = 0.0


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
    shard: Annotated[int, Meta(ge=0, lt=MAX_SHARDS)] = 0
    tenant: Annotated[bytes, Meta(max_length=8)] = b""


class Committed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Answer to `CommitStore`."""

    chunks: int
    """How many were taken; the rest was cleared or deleted meanwhile."""


class CommitStore(Request[Committed], frozen=True):
    """Publish what was written, abort the rest of the lease."""

    lease_id: LeaseId
    written: Annotated[bytes, Meta(max_length=4 * MAX_KEYS)] | None = None
    """Positions in the grant, uint32 little-endian, ascending; all of them if None."""


class RetrieveGrant(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The prefix that is here, held until released."""

    slots: Slots


class PrepareRetrieve(Request[RetrieveGrant], frozen=True):
    """Hold the longest prefix for reading.

    With `wait_s` the answer waits up to so long for what L2 brings to L1; else it comes at once.
    """

    namespace_id: int
    keys: Keys
    wait_s: Annotated[float, Meta(ge=0, le=600)] = 0.0


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


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `Heartbeat`."""

    l2: list[str]
    """The adapters that are to have a worker."""


class Heartbeat(Request[Beat], frozen=True, kw_only=True):
    """Does the loop run? The supervisor says with it what it watches."""

    processes: (
        Annotated[
            dict[Annotated[str, Meta(max_length=128)], ProcessInfo], Meta(max_length=MAX_PROCESSES)
        ]
        | None
    ) = None


class Populated(Request[Done], frozen=True, kw_only=True):
    """From the helper process: so much of the segment, from its beginning, is backed by memory."""

    l1_id: Annotated[bytes, Meta(max_length=16)]
    populated_bytes: int
    error: Annotated[str, Meta(max_length=MAX_SENTENCE)] = ""
    """Why it stopped before the end, if it did."""


class Status(Request[StatusReport], frozen=True):
    """What is going on?"""


class GetConfig(Request[ConfigReport], frozen=True):
    """With which values does this server run?"""


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
