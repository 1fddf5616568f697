"""`CacheClient`: the verbs of the cache for one namespace and one shard.

An inference engine must never fail because its cache did: every verb ends within `timeout_s`, and
answers a miss or a skipped store where the server could not; see `_open`. Only a commit, for which
something has been copied already, waits that long for a server that restarts.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import bus
from lmcache_mp import namespace as namespaces
from lmcache_mp.client.counters import Counters
from lmcache_mp.client.deadline import Deadline
from lmcache_mp.client.grants import committed, leased
from lmcache_mp.client.leases import Pin, RetrieveHit, Slots, StoreBatch
from lmcache_mp.client.session import ClientClosed, Link, Session
from lmcache_mp.errors import BadShard, LeaseRefused, NotRegistered
from lmcache_mp.key_files import curve_for
from lmcache_mp.keys import ChunkKeys, ExtraKeys, TokenIds, chunk_keys
from lmcache_mp.messages import (
    Clear,
    CommitStore,
    Delete,
    Lookup,
    LookupReply,
    PrepareRetrieve,
    PrepareStore,
    Touch,
)
from lmcache_mp.messages import Pin as PinMessage
from lmcache_mp.namespace import Namespace
from lmcache_mp.tiering.messages import Prefetch

T = TypeVar("T")
WAIT_SHARE = 0.75
"""Of what is left of a deadline: so long the server may wait for L2 before it answers."""

_WORTH_A_NEW_CONNECTION = (bus.Unavailable, bus.StaleEpoch, LeaseRefused, NotRegistered)
"""What a connection that has become stale is answered with."""


class CacheClient:
    """Made by `connect`. Use from any thread; a forked child must make its own."""

    def __init__(
        self,
        session: Session,
        namespace: Namespace,
        *,
        shard: int,
        fail_open: bool,
        timeout_s: float,
    ) -> None:
        self.namespace = namespaces.validated(namespace)
        if not 0 <= shard < namespace.num_shards:
            raise BadShard(f"shard {shard} of a namespace with {namespace.num_shards}", shard=shard)
        self.shard = shard
        self.fail_open = fail_open
        self.counters = Counters()
        self._session = session
        self._timeout_s = timeout_s

    @classmethod
    def connect(
        cls,
        address: str,
        namespace: Namespace,
        *,
        shard: int = 0,
        fail_open: bool = True,
        timeout_s: float = 2.0,
        who: str = "client",
        key_file: str | Path | None = None,
    ) -> CacheClient:
        """A client of the server at `address` (`ipc://<run-dir>/bus.sock`).

        `key_file`, as `lmcache-mp keys client` makes it, for a tcp address that requires one: such
        a client may look up and manage, but is given no bytes. A server that is not there is tried
        again later; one that refuses the namespace or the protocol raises its `CallError` here,
        whatever `fail_open` says, and so does a key file that cannot be used.
        """
        session = Session(address, namespace, who, curve_for(address, key_file))
        cache = cls(session, namespace, shard=shard, fail_open=fail_open, timeout_s=timeout_s)
        try:
            cache._session.link(Deadline(timeout_s))
        except (bus.Unavailable, bus.DeadlineExceeded) as fault:
            if not fail_open:
                cache.close()
                raise
            cache.counters.failed("connect", fault)
        except BaseException:
            cache.close()
            raise
        return cache

    def chunk_keys(
        self, token_ids: TokenIds, *, salt: str = "", lora: str = "", extra: ExtraKeys = ()
    ) -> ChunkKeys:
        """The keys of a prompt's whole chunks; see `lmcache_mp.keys.chunk_keys`."""
        return chunk_keys(self.namespace, token_ids, salt=salt, lora=lora, extra=extra)

    def lookup(self, keys: ChunkKeys, *, hold_s: float = 0.0, wait: bool = False) -> LookupReply:
        """How much of the prompt is here; with `hold_s` it is kept that long if it can be.

        With `wait`, L2 is asked before the answer; else the answer says what is known of it.
        """

        def ask(link: Link, deadline: Deadline) -> LookupReply:
            left_s = deadline.left_s()
            wait_s = left_s * WAIT_SHARE if wait else 0.0
            return link.client.call(Lookup(link.namespace_id, keys.buffer, hold_s, wait_s), left_s)

        reply = self._open("lookup", ask, LookupReply(0))
        self.counters.lookup_chunks += len(keys)
        self.counters.hit_chunks += reply.hit_chunks
        return reply

    def store(self, keys: ChunkKeys) -> StoreBatch:
        """Reserve room for what is missing; to be used as a context manager."""
        return self.begin_store(keys)

    def begin_store(self, keys: ChunkKeys) -> StoreBatch:
        """As `store`, for a caller that commits or aborts later."""

        def ask(link: Link, deadline: Deadline) -> tuple[Slots, int]:
            request = PrepareStore(link.namespace_id, keys.buffer, self.shard, keys.tenant)
            lease_id, grant = leased(self._session, link, request, deadline)
            slots = self._slots(link, lease_id, array("I", grant.indices), array("I", grant.slots))
            slots.writable = True
            return slots, grant.no_room_chunks

        slots, no_room = self._open("store", ask, (Slots(), 0)) if len(keys) else (Slots(), 0)
        return StoreBatch(slots, no_room, self._commit, self._give_back)

    def retrieve(self, keys: ChunkKeys, *, wait: bool = True) -> RetrieveHit:
        """Hold the longest prefix that is here; to be used as a context manager.

        By default that waits for what L2 brings, for most of the client's `timeout_s`; without
        `wait` it is what is in L1.
        """
        return self.begin_retrieve(keys, wait=wait)

    def begin_retrieve(self, keys: ChunkKeys, *, wait: bool = True) -> RetrieveHit:
        """As `retrieve`, for a caller that releases later."""

        def ask(link: Link, deadline: Deadline) -> Slots:
            wait_s = deadline.left_s() * WAIT_SHARE if wait else 0.0
            request = PrepareRetrieve(link.namespace_id, keys.buffer, wait_s)
            lease_id, grant = leased(self._session, link, request, deadline)
            addresses = array("I", grant.slots)
            return self._slots(link, lease_id, array("I", range(len(addresses))), addresses)

        slots = self._open("retrieve", ask, Slots()) if len(keys) else Slots()
        self.counters.retrieved_chunks += len(slots)
        return RetrieveHit(slots, self._give_back, self._session.owe)

    def prefetch(self, keys: ChunkKeys) -> int:
        """Have what L2 has of the prompt brought to L1; returns what is there already."""

        def ask(link: Link, deadline: Deadline) -> int:
            request = Prefetch(link.namespace_id, keys.buffer)
            return link.client.call(request, deadline.left_s()).l1_chunks

        return self._open("prefetch", ask, 0)

    def pin(self, keys: ChunkKeys) -> Pin:
        """Keep the longest prefix from eviction while this client lives, or until released."""

        def ask(link: Link, deadline: Deadline) -> tuple[int, int]:
            request = PinMessage(link.namespace_id, keys.buffer)
            lease_id, pinned = leased(self._session, link, request, deadline)
            if not pinned.chunks:
                self._session.held.discard(lease_id)
            return (lease_id if pinned.chunks else 0), pinned.chunks

        lease_id, chunks = self._open("pin", ask, (0, 0))
        return Pin(lease_id, chunks, self._give_back, self._session.owe)

    def touch(self, keys: ChunkKeys) -> int:
        """Mark the longest prefix as just used; returns its chunks."""

        def ask(link: Link, deadline: Deadline) -> int:
            return link.client.call(Touch(link.namespace_id, keys.buffer), deadline.left_s()).chunks

        return self._open("touch", ask, 0)

    def delete(self, keys: ChunkKeys) -> int:
        """Forget these chunks; returns how many were here."""

        def ask(link: Link, deadline: Deadline) -> int:
            return link.client.call(
                Delete(link.namespace_id, keys.buffer), deadline.left_s()
            ).chunks

        return self._open("delete", ask, 0)

    def clear(self) -> int:
        """Forget all chunks of this namespace; returns how many there were."""

        def ask(link: Link, deadline: Deadline) -> int:
            request = Clear(namespace_id=link.namespace_id)
            return link.client.call(request, deadline.left_s()).cleared_chunks

        return self._open("clear", ask, 0)

    def close(self) -> None:
        """Give back all that is held and disconnect. Idempotent."""
        self._session.close(Deadline(self._timeout_s))

    def __enter__(self) -> CacheClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _open(self, verb: str, ask: Callable[[Link, Deadline], T], otherwise: T) -> T:
        """The one place where a verb fails open: `ask`, once more on a new connection if the old
        one was of no use, and `otherwise` with a count if the server cannot answer.
        """
        deadline = Deadline(self._timeout_s)
        try:
            try:
                return ask(self._session.link(deadline), deadline)
            except ClientClosed:
                raise
            except _WORTH_A_NEW_CONNECTION as fault:
                if isinstance(fault, LeaseRefused) and self._session.refused:
                    raise
                self._session.lose_link()
                return ask(self._session.link(deadline), deadline)
        except bus.BusError as fault:
            self.counters.failed(verb, fault)
            if not isinstance(fault, bus.CallError):
                self._session.lose_link()
            if not self.fail_open:
                raise
            return otherwise

    def _slots(
        self, link: Link, lease_id: int, indices: array[int], addresses: array[int]
    ) -> Slots:
        if not addresses:
            self._session.held.discard(lease_id)  # nothing granted, nothing to give back
            return Slots()
        shard_bytes = self.namespace.shard_bytes
        return Slots(
            lease_id, indices, addresses, link.mapping, self.shard * shard_bytes, shard_bytes
        )

    def _give_back(self, lease_id: int) -> None:
        self._session.give_back(lease_id, Deadline(self._timeout_s))

    def _commit(self, slots: Slots, written: list[int]) -> int:
        """Commit to the engine that lives: the one that granted the lease, or its successor."""
        everything = len(written) == len(slots)
        positions = None if everything else array("I", written).tobytes()
        request = CommitStore(slots.lease_id, positions)
        deadline = Deadline(self._timeout_s)
        try:
            taken = committed(self._session, request, deadline)
        except bus.BusError as fault:
            self._session.owe(slots.lease_id)
            self.counters.failed("commit", fault)
            if not self.fail_open:
                raise
            return 0
        self._session.held.discard(slots.lease_id)
        self.counters.stored_chunks += taken
        return taken
