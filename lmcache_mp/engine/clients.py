"""The clients of this engine: their connections, and the proof that they live."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from bus import Call
from lmcache_mp.errors import LeaseRefused
from lmcache_mp.l1.lease import Owner
from lmcache_mp.l1.tier import L1
from lmcache_mp.liveness import CLIENT_ID_BYTES, is_locked, open_lifeline
from lmcache_mp.logging import init_logger
from lmcache_mp.messages import Hello
from lmcache_mp.rundir import RunDir, boot_id

log = init_logger(__name__)

MAX_CONNECTIONS = 1024
"""Of one client; its oldest is forgotten for a newer one."""


@dataclass(slots=True, eq=False)
class Client:
    """One client that can prove its life, and so can be given bytes."""

    owner: Owner
    descriptor: int
    """Of its lock file."""
    who: str = ""
    pid: int = 0
    peers: dict[bytes, None] = field(default_factory=dict)
    """Routing ids of its connections."""


class Clients:
    """All clients with a lease to their name, or the right to one."""

    def __init__(self, l1: L1, run_dir: RunDir) -> None:
        self._l1 = l1
        self._run_dir = run_dir
        self._boot_id = boot_id()
        self._by_peer: dict[bytes, Client] = {}
        self.by_id: dict[bytes, Client] = {}

    def restore(self, owner_id: bytes) -> bool:
        """After a restart: whether the owner of recorded leases lives, to be watched again."""
        descriptor = open_lifeline(self._run_dir.clients, owner_id)
        if descriptor is None or not is_locked(descriptor):
            if descriptor is not None:
                os.close(descriptor)
            return False
        self.by_id[owner_id] = Client(self._l1.ledger.owner(owner_id), descriptor)
        return True

    def welcome(self, call: Call, hello: Hello) -> str:
        """Take a connection in as one of a client that lives; why it cannot be, else."""
        client = self.by_id.get(hello.client_id)
        if client is None:
            descriptor, reason = self._proof(hello)
            if descriptor is None:
                return reason
            client = Client(self._l1.ledger.owner(hello.client_id), descriptor)
            self.by_id[hello.client_id] = client
        client.who, client.pid = hello.who, hello.pid
        client.peers[call.peer] = None
        self._by_peer[call.peer] = client
        if len(client.peers) > MAX_CONNECTIONS:
            oldest = next(iter(client.peers))
            del client.peers[oldest], self._by_peer[oldest]
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

    def _proof(self, hello: Hello) -> tuple[int | None, str]:
        """A descriptor of the client's lock file, if it proves that the client lives here."""
        if len(hello.client_id) != CLIENT_ID_BYTES:
            return None, f"its id has {len(hello.client_id)} bytes, not {CLIENT_ID_BYTES}"
        if hello.boot_id != self._boot_id:
            return None, "it runs on another host, or in another boot of it"
        descriptor = open_lifeline(self._run_dir.clients, hello.client_id)
        if descriptor is None:
            return None, f"its lock file is not in {self._run_dir.clients}"
        if os.fstat(descriptor).st_ino != hello.lock_inode or not is_locked(descriptor):
            os.close(descriptor)
            return None, f"its lock file in {self._run_dir.clients} is another one, or not locked"
        return descriptor, ""

    def _forget(self, client: Client) -> None:
        os.close(client.descriptor)
        (self._run_dir.clients / client.owner.id.hex()).unlink(missing_ok=True)
        del self.by_id[client.owner.id]
        for peer in client.peers:
            del self._by_peer[peer]
