"""The clients of this engine: their connections, and the proof that they live."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from bus import Call
from lmcache_mp.errors import LeaseRefused, LimitReached
from lmcache_mp.l1.lease import Owner
from lmcache_mp.l1.tier import L1
from lmcache_mp.liveness import (
    CLIENT_ID_BYTES,
    Sweep,
    is_locked,
    open_lifeline,
    remove_lifeline,
)
from lmcache_mp.logging import init_logger
from lmcache_mp.messages import Hello
from lmcache_mp.rundir import RunDir, boot_id

log = init_logger(__name__)

CONNECTIONS_UNSEEN = 64
"""So many of one client are taken for there; each that comes beyond has some looked at."""

LOOKED_AT_ONCE = 8
"""Connections: whoever opens one after the other holds up nobody."""


@dataclass(slots=True, eq=False)
class Client:
    """One client that can prove its life, and so can be given bytes."""

    owner: Owner
    descriptor: int
    """Of its lock file."""
    who: str = ""
    pid: int = 0
    peers: dict[bytes, None] = field(default_factory=dict)
    """Routing ids of its connections, some of them perhaps gone; looked at last, last."""

    @property
    def name(self) -> str:
        """What it goes by."""
        return self.owner.name


class Clients:
    """All clients with a lease to their name, or the right to one."""

    def __init__(
        self,
        l1: L1,
        run_dir: RunDir,
        is_connected: Callable[[bytes], bool],
        max_connections: int,
    ) -> None:
        self._l1 = l1
        self._is_connected = is_connected
        self._max_connections = max_connections
        self._run_dir = run_dir
        self._boot_id = boot_id()
        self._by_peer: dict[bytes, Client] = {}
        self.on_gone: list[Callable[[Owner], None]] = []
        """Told of clients that have ended, or are proven gone."""
        self.by_id: dict[bytes, Client] = {}
        self._sweep = Sweep(run_dir.clients)

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
        if call.peer not in client.peers:
            self._make_room(client)
            self._leave(call.peer)
            client.peers[call.peer] = None
            self._by_peer[call.peer] = client
        client.who, client.pid = hello.who, hello.pid
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
            self._tell_gone(client)
            self._forget(client)

    def bury_the_dead(self, now_s: float) -> None:
        """End what clients held whose lock is gone."""
        for client in list(self.by_id.values()):
            if not is_locked(client.descriptor):
                leases = len(client.owner.leases)
                log.info("client gone who=%s pid=%d leases=%d", client.who, client.pid, leases)
                self._l1.owner_died(client.owner, now_s)
                self._tell_gone(client)
                self._forget(client)

    def sweep(self, now_s: float) -> None:
        """Remove the files of clients that died before they said hello."""
        self._sweep.step(besides=self.by_id)

    def _open(self, client_id: bytes) -> int | None:
        return open_lifeline(self._run_dir.clients, client_id)

    def _make_room(self, client: Client) -> None:
        """Forget connections of the client that are gone; `LimitReached` if it has too many."""
        limit = self._max_connections
        if len(client.peers) < min(CONNECTIONS_UNSEEN, limit):
            return
        for peer in list(itertools.islice(client.peers, LOOKED_AT_ONCE)):
            if self._is_connected(peer):
                client.peers[peer] = client.peers.pop(peer)  # to the end
            else:
                self._leave(peer)
        if len(client.peers) >= limit:
            raise LimitReached(
                f"the client has {len(client.peers)} connections and may have {limit}"
                " (max_connections): use fewer threads",
                limit=limit,
            )

    def _leave(self, peer: bytes) -> None:
        client = self._by_peer.pop(peer, None)
        if client is not None:
            del client.peers[peer]

    def _tell_gone(self, client: Client) -> None:
        for tell in self.on_gone:
            tell(client.owner)

    def _forget(self, client: Client) -> None:
        os.close(client.descriptor)
        remove_lifeline(self._run_dir.clients, client.owner.id)
        del self.by_id[client.owner.id]
        for peer in list(client.peers):
            self._leave(peer)
