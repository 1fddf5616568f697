"""The engine's handlers over a small L1, without the socket: what a frame does, in microseconds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from bus import DEFERRED, Call, CallError, HandlerFailed, Message, Server, wire
from lmcache_mp import messages as m
from lmcache_mp.config import Config
from lmcache_mp.engine.clients import Clients
from lmcache_mp.engine.l2 import L2
from lmcache_mp.engine.report import Facts
from lmcache_mp.engine.service import Service
from lmcache_mp.l1.check import check
from lmcache_mp.l1.tier import DEVICE_GRACE_S
from lmcache_mp.liveness import LifeLine
from lmcache_mp.namespace import Namespace
from lmcache_mp.rundir import RunDir, boot_id
from lmcache_mp.units import Size
from tests.fuzz.grammar import KINDS
from tests.l1.memory import PAGE_BYTES, new_l1

EPOCH = 7
PAGES = 64
PEER = b"\0peer"


class Inside:
    """An engine's insides and one client that may lease."""

    def __init__(self, run_dir: RunDir, populated_pages: int) -> None:
        self._run_dir = run_dir
        self._lifeline: LifeLine | None = None
        config = Config(
            name="fuzz", run_dir=str(run_dir.path), l1_size=Size("1MiB"), max_open_calls=128
        )
        facts = Facts(
            path="nowhere",
            capacity_bytes=PAGES * PAGE_BYTES,
            populated_bytes=populated_pages * PAGE_BYTES,
            run_dir=str(run_dir.path),
        )
        self.l1 = new_l1(PAGES, populated_pages)
        self.server = Server(KINDS, epoch=EPOCH)
        self._handlers = self.server._handlers
        clients = Clients(
            self.l1, run_dir, self.server.is_connected, max_connections=config.max_connections
        )
        l2 = L2(self.server, self.l1, clients, run_dir, config)
        self.service = Service(self.server, self.l1, l2, clients, config, facts)
        self._handlers.require_all()
        self._clients = clients
        self.say_hello()
        self.say(m.RegisterNamespace(namespace=Namespace(model="m", dtype="u8", shard_bytes=4096)))

    def say_hello(self) -> None:
        """Be somebody new who may lease, and a server that is not drained."""
        self.close_lifeline()
        self._lifeline = LifeLine.create(self._run_dir.clients)
        self.say(
            m.Hello(
                who="fuzz",
                pid=os.getpid(),
                client_id=self._lifeline.client_id,
                lock_inode=self._lifeline.inode,
                boot_id=boot_id(),
            )
        )
        self.service.draining = False

    def close_lifeline(self) -> None:
        """Die, long ago."""
        if self._lifeline is not None:
            self._lifeline.close()
            self._clients.bury_the_dead(0.0)
            self.l1.tick(2 * DEVICE_GRACE_S)

    def say(self, message: Message) -> None:
        """One honest message."""
        assert self.take(wire.frame(wire.REQUEST, 1, wire.NO_EPOCH, message)) == ""

    def take(self, data: bytes) -> str:
        """Take a frame: empty, or the code of the error that it is answered with.

        Anything but an answer, an error of the sender's, or no frame at all fails.
        """
        try:
            _, kind, call_id, _ = wire.parse(data)
        except wire.NotWellFramed:
            return "not_well_framed"
        call = Call(self.server, PEER, call_id, owed=kind == wire.REQUEST)
        try:
            answer = self._handlers.handle(call, data)
        except HandlerFailed:
            raise
        except CallError as error:
            wire.error_frame(call_id, EPOCH, error)
            return type(error).code
        if answer is not DEFERRED:
            wire.frame(wire.REPLY, call_id, EPOCH, answer)
        return ""

    def faults(self) -> list[str]:
        """Broken invariants of L1."""
        return check(self.l1)


@contextlib.contextmanager
def inside(directory: Path, populated_pages: int = PAGES) -> Iterator[Inside]:
    """A fresh one in a directory of its own."""
    run_dir = RunDir(directory / "r")
    run_dir.create()
    engine = Inside(run_dir, populated_pages)
    try:
        yield engine
    finally:
        engine.close_lifeline()
        engine.server.close()
