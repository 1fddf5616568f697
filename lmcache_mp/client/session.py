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
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import bus
from bus import ClientCurve, Unavailable
from lmcache_mp.access import why_no_access
from lmcache_mp.client.deadline import Deadline
from lmcache_mp.client.mapping import Mapping
from lmcache_mp.errors import LeaseRefused
from lmcache_mp.liveness import LifeLine
from lmcache_mp.logging import init_logger
from lmcache_mp.messages import Goodbye, Hello, RegisterNamespace, Release, Segment, Welcome
from lmcache_mp.namespace import Namespace
from lmcache_mp.rundir import boot_id

log = init_logger(__name__)

FIRST_BACK_OFF_S = 0.01
LONGEST_BACK_OFF_S = 0.25


class ClientClosed(Unavailable):
    """The client was closed, or belongs to the process that this one was forked from."""


@dataclass(slots=True)
class Link:
    """One thread's connection, and what an answer that comes by it refers to."""

    client: bus.Client
    namespace_id: int
    mapping: Mapping | None


class Session:
    """See the module. Its methods may be called from any thread."""

    def __init__(
        self, address: str, namespace: Namespace | None, who: str, curve: ClientCurve | None = None
    ) -> None:
        self.address = bus.validate_address(address)
        self.namespace = namespace
        """None: of a client that registers none, a worker."""
        self.refused = ""
        """Why the server gives this client no bytes, if it does not."""
        self.held: set[int] = set()
        """Lease ids asked for and not given back. One is in here before it is asked for: a hello
        that another thread says in the meantime must name it."""
        self.owed: deque[int] = deque()
        """Lease ids to be given back. (Appended to by finalizers, so it needs no lock.)"""
        self._who = who
        self._curve = curve
        self._epoch = 0
        self._mapping: Mapping | None = None
        self._call_ids = itertools.count(1)
        self._lifeline: LifeLine | None = None
        self._lock = threading.Lock()
        self._local = threading.local()
        self._links: list[tuple[threading.Thread, Link]] = []
        self._retry_at_s = 0.0
        self._last_fault = ""
        self._back_off_s = FIRST_BACK_OFF_S
        self._closed = ""
        _sessions.add(self)

    def link(self, deadline: Deadline) -> Link:
        """This thread's connection, made anew if need be, with nothing owed any more.

        Raises `Unavailable` at once if there can be none, `CallError` if the server refuses the
        namespace.
        """
        link: Link | None = getattr(self._local, "link", None)
        if link is None or link.client.epoch != self._epoch or self._closed:
            link = self._connect(deadline)
        while self.owed:
            try:
                lease_id = self.owed.popleft()
            except IndexError:  # another thread was faster
                break
            try:
                link.client.notify(Release(lease_id))
            except bus.BusError:
                self.owed.append(lease_id)
                raise
        return link

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

    def new_lease_id(self) -> int:
        """The call id for a request that asks for a lease."""
        lease_id = next(self._call_ids)
        self.held.add(lease_id)
        return lease_id

    def owe(self, lease_id: int) -> None:
        """Give a lease back with the next call."""
        self.owed.append(lease_id)
        self.held.discard(lease_id)

    def give_back(self, lease_id: int, deadline: Deadline) -> None:
        """Give a lease back now, or with the next call if nobody is there."""
        self.owe(lease_id)
        try:
            self.link(deadline)
        except bus.BusError as fault:
            self.lose_link()
            log.debug("a lease is given back later: %s", fault)

    def close(self, deadline: Deadline) -> None:
        """Say goodbye and let go of everything. No other thread may be in a call."""
        if self._closed:
            return
        link: Link | None = getattr(self._local, "link", None)
        if link is not None:
            try:
                link.client.call(Goodbye(), deadline.left_s())
            except bus.BusError as fault:  # then the lock file tells
                log.debug("goodbye failed: %s", fault)
        with self._lock:
            self._closed = "the client is closed"
            for _, other in self._links:
                other.client.close()
            self._links.clear()
            if self._mapping is not None:
                self._mapping.close()
                self._mapping = None
            if self._lifeline is not None:
                self._lifeline.close()

    def abandon(self) -> None:
        """After fork, in the child: the parent's client is none of ours. Touches no socket."""
        self._closed = "the client belongs to the parent process: make one after fork"
        if self._lifeline is not None:
            self._lifeline.close()  # else the child would vouch for its parent's life
        if self._mapping is not None:
            _never_unmapped.append(self._mapping)
        self._lock = threading.Lock()

    def _connect(self, deadline: Deadline) -> Link:
        if not self._lock.acquire(timeout=deadline.left_s()):
            raise Unavailable(f"no server at {self.address}: another thread is still trying")
        try:
            if self._closed:
                raise ClientClosed(self._closed)
            self.lose_link()
            if time.monotonic() < self._retry_at_s:
                raise Unavailable(f"a moment ago, and not tried again yet: {self._last_fault}")
            try:
                link = self._introduced(deadline)
            except BaseException as fault:
                self._last_fault = str(fault)
                self._retry_at_s = time.monotonic() + self._back_off_s
                self._back_off_s = min(self._back_off_s * 2, LONGEST_BACK_OFF_S)
                raise
            self._retry_at_s, self._back_off_s = 0.0, FIRST_BACK_OFF_S
            self._local.link = link
            self._forget_finished_threads()
            self._links.append((threading.current_thread(), link))
            return link
        finally:
            self._lock.release()

    def _introduced(self, deadline: Deadline) -> Link:
        """A connection that is welcome."""
        try:
            client = bus.Client(
                self.address,
                connect_timeout_s=deadline.left_s(),
                call_ids=self._call_ids,
                curve=self._curve,
            )
        except Unavailable:
            if why := why_no_access(self.address):
                raise Unavailable(f"no access to the server at {self.address}: {why}") from None
            raise
        try:
            welcome = client.call(self._hello(), deadline.left_s())
            if not welcome.may_lease and self._lost_its_file():
                self._be_somebody_new()
                welcome = client.call(self._hello(), deadline.left_s())
            client.epoch = welcome.epoch
            self._settle_with(welcome)
            return Link(client, self._namespace_id(client, deadline), self._mapping)
        except OSError as fault:
            client.close()
            raise Unavailable(f"no access to the server at {self.address}: {fault}") from None
        except BaseException:
            client.close()
            raise

    def _namespace_id(self, client: bus.Client, deadline: Deadline) -> int:
        if self.namespace is None:
            return 0
        request = RegisterNamespace(namespace=self.namespace)
        return client.call(request, deadline.left_s()).namespace_id

    def _hello(self) -> Hello:
        if not self.address.startswith("ipc://"):
            return Hello(who=self._who, pid=os.getpid())
        if self._lifeline is None:
            self._lifeline = LifeLine.create(self._clients_directory)
        return Hello(
            who=self._who,
            pid=os.getpid(),
            client_id=self._lifeline.client_id,
            lock_inode=self._lifeline.inode,
            boot_id=boot_id(),
            known_epoch=self._epoch,
            leases=tuple(sorted(self.held)),
        )

    def _settle_with(self, welcome: Welcome) -> None:
        """Learn from a welcome what still stands."""
        if welcome.epoch != self._epoch:
            self.held.intersection_update(welcome.leases)
        self.refused = "" if welcome.may_lease else welcome.reason
        old = self._mapping
        if welcome.may_lease and (old is None or old.l1_id != welcome.l1_id):
            try:
                self._mapping = Mapping(welcome.segment, welcome.l1_id, self._ask_for_segment)
            except OSError as fault:
                self._mapping = None
                self.refused = f"{welcome.segment.path} cannot be mapped: {fault.strerror}"
            if old is not None:
                old.retire()
        self._epoch = welcome.epoch

    def _ask_for_segment(self) -> Segment:
        """What the server says of its segment now, over a connection of the asking thread."""
        with bus.Client(self.address, connect_timeout_s=1.0, curve=self._curve) as client:
            return client.call(Hello(who=self._who, pid=os.getpid())).segment

    @property
    def _clients_directory(self) -> Path:
        """Where clients keep their locked files: beside the bus's socket."""
        return Path(self.address.removeprefix("ipc://")).parent / "clients"

    def _lost_its_file(self) -> bool:
        """Whether the locked file is gone, with a purged run directory say."""
        lifeline = self._lifeline
        return (
            lifeline is not None
            and not (self._clients_directory / lifeline.client_id.hex()).exists()
        )

    def _be_somebody_new(self) -> None:
        """The server takes this client for dead: what it held is lost, and its name with it."""
        assert self._lifeline is not None
        self._lifeline.close()
        self._lifeline = None
        self.held.clear()

    def _forget_finished_threads(self) -> None:
        for thread, link in self._links:
            if not thread.is_alive():
                link.client.close()
        self._links = [(t, link) for t, link in self._links if t.is_alive()]


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()
_never_unmapped: list[Mapping] = []
"""In a forked child: mappings of its parent, which it does not have (MADV_DONTFORK). To unmap one
would unmap whatever lies in its place by now."""


def _after_fork_in_child() -> None:
    for session in list(_sessions):
        session.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)
