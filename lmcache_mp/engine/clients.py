"""The clients of this engine: their connections, and the proof that they live."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from bus import Call
from lmcache_mp.errors import LeaseRefused, LimitReached
from lmcache_mp.l1.lease import Owner
from lmcache_mp.l1.tier import L1
from lmcache_mp.liveness import CLIENT_ID_BYTES, is_locked, living_clients, open_lifeline
from lmcache_mp.logging import init_logger
from lmcache_mp.messages import Hello
from lmcache_mp.rundir import RunDir, boot_id

log = init_logger(__name__)

MAX_CONNECTIONS = 4096
"""Of one client at a time."""

PRUNE_CONNECTIONS_AT = 64
"""Beyond, a client's connections are looked through when they have doubled."""


@dataclass(slots=True, eq=False)
class Client:
    """One client that can prove its life, and so can be given bytes."""

    owner: Owner
    descriptor: int
    """Of its lock file."""
    who: str = ""
    pid: int = 0
    peers: set[bytes] = field(default_factory=set)
    """Routing ids of its connections, some of them perhaps gone."""
    prune_at: int = PRUNE_CONNECTIONS_AT

    @property
    def name(self) -> str:
        """A digest of its id, which whoever knows it could pretend to have."""
        return hashlib.sha256(self.owner.id).hexdigest()[:12]


class Clients:
    """All clients with a lease to their name, or the right to one."""

    def __init__(self, l1: L1, run_dir: RunDir, is_connected: Callable[[bytes], bool]) -> None:
        self._l1 = l1
        self._is_connected = is_connected
        self._run_dir = run_dir
        self._boot_id = boot_id()
        self._by_peer: dict[bytes, Client] = {}
        self.by_id: dict[bytes, Client] = {}

    def watch(self, living: Iterable[bytes]) -> None:
        """At the start: keep an eye on the clients of an earlier engine that live."""
        for client_id in living:
            descriptor = self._open(client_id)
            if descriptor is not None:
                self.by_id[client_id] = Client(self._l1.ledger.owner(client_id), descriptor)

    def welcome(self, call: Call, hello: Hello) -> str:
        """Take a connection in as one of a client that lives; why it cannot be, else."""
        if len(hello.client_id) != CLIENT_ID_BYTES:
            return f"its id has {len(hello.client_id)} bytes, not {CLIENT_ID_BYTES}"
        if hello.boot_id != self._boot_id:
            return "it runs on another host, or in another boot of it"
        client = self.by_id.get(hello.client_id)
        descriptor = client.descriptor if client is not None else self._open(hello.client_id)
        if descriptor is None:
            return f"its lock file is not in {self._run_dir.clients}"
        if os.fstat(descriptor).st_ino != hello.lock_inode or not is_locked(descriptor):
            if client is None:
                os.close(descriptor)
            return f"its lock file in {self._run_dir.clients} is another one, or not locked"
        if client is None:
            client = Client(self._l1.ledger.owner(hello.client_id), descriptor)
            self.by_id[hello.client_id] = client
        self._make_room(client)
        client.who, client.pid = hello.who, hello.pid
        self._leave(call.peer)
        client.peers.add(call.peer)
        self._by_peer[call.peer] = client
        return ""

    def of(self, call: Call) -> Owner:
        """The owner behind a connection, or `LeaseRefused`."""
        client = self._by_peer.get(call.peer)
        if client is None:
            raise LeaseRefused(
                "this connection may not be given bytes: it has not said hello as a client that"
                " can prove its life (a locked file in the server's run directory)"
            )
        return client.owner

    def find(self, call: Call) -> Owner | None:
        """The owner behind a connection, if it has one."""
        client = self._by_peer.get(call.peer)
        return client.owner if client is not None else None

    def goodbye(self, call: Call) -> None:
        """A client ends, with all its connections and leases."""
        client = self._by_peer.get(call.peer)
        if client is not None:
            self._l1.owner_ended(client.owner)
            self._forget(client)

    def bury_the_dead(self, now_s: float) -> None:
        """End what clients held whose lock is gone."""
        for client in list(self.by_id.values()):
            if not is_locked(client.descriptor):
                leases = len(client.owner.leases)
                log.info("client gone who=%s pid=%d leases=%d", client.who, client.pid, leases)
                self._l1.owner_died(client.owner, now_s)
                self._forget(client)

    def sweep(self, now_s: float) -> None:
        """Remove the files of clients that died before they said hello."""
        living_clients(self._run_dir.clients, besides=self.by_id)

    def _open(self, client_id: bytes) -> int | None:
        return open_lifeline(self._run_dir.clients, client_id)

    def _make_room(self, client: Client) -> None:
        """Forget connections of the client that are gone; `LimitReached` if it has too many."""
        if len(client.peers) < client.prune_at:
            return
        for peer in [peer for peer in client.peers if not self._is_connected(peer)]:
            self._leave(peer)
        client.prune_at = max(PRUNE_CONNECTIONS_AT, 2 * len(client.peers))
        if len(client.peers) >= MAX_CONNECTIONS:
            raise LimitReached(
                f"the client has {len(client.peers)} connections, more than {MAX_CONNECTIONS} it"
                " may not have: use fewer threads",
                limit=MAX_CONNECTIONS,
            )

    def _leave(self, peer: bytes) -> None:
        client = self._by_peer.pop(peer, None)
        if client is not None:
            client.peers.discard(peer)

    def _forget(self, client: Client) -> None:
        os.close(client.descriptor)
        (self._run_dir.clients / client.owner.id.hex()).unlink(missing_ok=True)
        del self.by_id[client.owner.id]
        for peer in list(client.peers):
            self._leave(peer)
