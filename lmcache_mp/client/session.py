"""A client's standing with its server, over reconnections: identity, epoch, mapping, leases.

One session per `CacheClient`; each thread has a connection of its own, made when it first needs
one. A connection that is lost is replaced at the thread's next call, after a back-off while nobody
is there; whoever is first to reach a new incarnation of the server settles with it what is held.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path

import bus
from bus import Unavailable
from lmcache_mp.client.mapping import Mapping
from lmcache_mp.errors import LeaseRefused
from lmcache_mp.liveness import LifeLine
from lmcache_mp.logging import init_logger
from lmcache_mp.messages import Goodbye, Hello, RegisterNamespace, Release, Welcome
from lmcache_mp.namespace import Namespace
from lmcache_mp.rundir import boot_id

log = init_logger(__name__)

FIRST_BACK_OFF_S = 0.01
LONGEST_BACK_OFF_S = 0.25
CONNECT_TIMEOUT_S = 1.0


@dataclass(slots=True)
class Link:
    """One thread's connection."""

    client: bus.Client
    namespace_id: int


class Session:
    """See the module. Its methods may be called from any thread."""

    def __init__(self, address: str, namespace: Namespace, who: str, timeout_s: float) -> None:
        self.address = bus.validate_address(address)
        self.namespace = namespace
        self.timeout_s = timeout_s
        self.mapping: Mapping | None = None
        self.epoch = 0
        self.refused = ""
        """Why the server gives this client no bytes, if it does not."""
        self.held: set[int] = set()
        """Lease ids granted and not yet given back."""
        self.owed: set[int] = set()
        """Lease ids to be given back that could not be yet."""
        self._who = who
        self._call_ids = itertools.count(1)
        self._lifeline: LifeLine | None = None
        self._lock = threading.Lock()
        self._local = threading.local()
        self._links: list[tuple[threading.Thread, Link]] = []
        self._retry_at_s = 0.0
        self._back_off_s = FIRST_BACK_OFF_S
        self._closed = ""
        _sessions.add(self)

    def link(self) -> Link:
        """This thread's connection, made anew if need be; raises `Unavailable` at once if it cannot
        be, `CallError` if the server refuses the namespace.
        """
        link: Link | None = getattr(self._local, "link", None)
        if link is not None and link.client.epoch == self.epoch and not self._closed:
            return link
        return self._connect()

    def lose_link(self) -> None:
        """This thread's connection is of no use any more."""
        link: Link | None = getattr(self._local, "link", None)
        if link is not None:
            link.client.close()
            self._local.link = None

    def require_lease_right(self) -> None:
        """Raise `LeaseRefused` with the server's reason, if it has one."""
        if self.refused:
            raise LeaseRefused(f"{self.address} gives this client no bytes: {self.refused}")

    def give_back(self, lease_id: int) -> None:
        """End a lease now, or as soon as the server can be told."""
        self.owe(lease_id)
        self.settle()

    def owe(self, lease_id: int) -> None:
        """End a lease with the next call."""
        self.owed.add(lease_id)
        self.held.discard(lease_id)

    def settle(self) -> None:
        """Give back what is owed, if somebody is there."""
        try:
            while self.owed:
                lease_id = self.owed.pop()
                try:
                    self.link().client.notify(Release(lease_id))
                except bus.BusError:
                    self.owed.add(lease_id)
                    raise
        except Unavailable:
            self.lose_link()
        except bus.BusError as fault:
            log.warning("could not give a lease back: %s", fault)

    def close(self) -> None:
        """Say goodbye and let go of everything. No other thread may be in a call."""
        if self._closed:
            return
        link: Link | None = getattr(self._local, "link", None)
        if link is not None:
            try:
                link.client.call(Goodbye(), timeout_s=self.timeout_s)
            except bus.BusError as fault:  # then the lock file tells
                log.debug("goodbye failed: %s", fault)
        with self._lock:
            self._closed = "the client is closed"
            for _, other in self._links:
                other.client.close()
            self._links.clear()
            if self.mapping is not None:
                self.mapping.close()
                self.mapping = None
            if self._lifeline is not None:
                self._lifeline.close()

    def abandon(self) -> None:
        """After fork, in the child: the parent's client is none of ours. Touches no socket."""
        self._closed = "the client belongs to the parent process: make one after fork"
        if self._lifeline is not None:
            self._lifeline.close()  # else the child would vouch for its parent's life
        self._lock = threading.Lock()

    def _connect(self) -> Link:
        with self._lock:
            if self._closed:
                raise Unavailable(self._closed)
            self.lose_link()
            now_s = time.monotonic()
            if now_s < self._retry_at_s:
                raise Unavailable(f"no server at {self.address} a moment ago: not tried again yet")
            try:
                link = self._say_hello()
            except BaseException:
                self._retry_at_s = time.monotonic() + self._back_off_s
                self._back_off_s = min(self._back_off_s * 2, LONGEST_BACK_OFF_S)
                raise
            self._retry_at_s, self._back_off_s = 0.0, FIRST_BACK_OFF_S
            self._local.link = link
            self._forget_finished_threads()
            self._links.append((threading.current_thread(), link))
            return link

    def _say_hello(self) -> Link:
        lifeline = self._own_lifeline()
        client = bus.Client(
            self.address, connect_timeout_s=CONNECT_TIMEOUT_S, call_ids=self._call_ids
        )
        try:
            hello = Hello(who=self._who, pid=os.getpid())
            if lifeline is not None:
                hello = Hello(
                    who=self._who,
                    pid=os.getpid(),
                    client_id=lifeline.client_id,
                    lock_inode=lifeline.inode,
                    boot_id=boot_id(),
                    known_epoch=self.epoch,
                    leases=tuple(sorted(self.held)),
                )
            welcome = client.call(hello, self.timeout_s)
            client.epoch = welcome.epoch
            self._settle_with(welcome)
            registered = client.call(RegisterNamespace(namespace=self.namespace), self.timeout_s)
            return Link(client, registered.namespace_id)
        except BaseException:
            client.close()
            raise

    def _settle_with(self, welcome: Welcome) -> None:
        """Learn from a welcome what still stands."""
        if welcome.epoch != self.epoch:
            self.held.intersection_update(welcome.leases)
            self.owed.intersection_update(welcome.leases)  # the hello gave the others back
        self.refused = "" if welcome.may_lease else welcome.reason
        if welcome.may_lease and (self.mapping is None or self.mapping.l1_id != welcome.l1_id):
            old = self.mapping
            try:
                self.mapping = Mapping(welcome.segment, welcome.l1_id)
            except OSError as fault:
                self.mapping = None
                self.refused = f"{welcome.segment.path} cannot be mapped: {fault.strerror}"
            if old is not None:
                old.retire()
        self.epoch = welcome.epoch

    def _own_lifeline(self) -> LifeLine | None:
        """This client's locked file, in the run directory of the bus's socket."""
        if not self.address.startswith("ipc://"):
            return None
        clients = Path(self.address.removeprefix("ipc://")).parent / "clients"
        if self._lifeline is not None and not (clients / self._lifeline.client_id.hex()).exists():
            self._lifeline.close()  # the run directory was purged: be somebody new
            self._lifeline = None
        if self._lifeline is None:
            try:
                self._lifeline = LifeLine.create(clients)
            except FileNotFoundError:
                raise Unavailable(f"no server at {self.address}: {clients} is not there") from None
            except OSError as fault:
                raise Unavailable(
                    f"no access to the server at {self.address}: {clients}: {fault.strerror}"
                ) from None
        return self._lifeline

    def _forget_finished_threads(self) -> None:
        for thread, link in self._links:
            if not thread.is_alive():
                link.client.close()
        self._links = [(t, link) for t, link in self._links if t.is_alive()]


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for session in list(_sessions):
        session.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)
