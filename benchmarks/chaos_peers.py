"""Peers of the bus that misbehave for a moment: over its ipc socket and loopback, and bounded.

python -m benchmarks.chaos_peers KIND RUN_DIR TCP SEED SECONDS
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zmq

import bus
from benchmarks.chaos_plan import Kind
from benchmarks.chaos_prompts import NAMESPACES, PROMPTS, prompt_keys
from bus import wire
from bus.dealer import DEALER_OPTIONS
from lmcache_mp.client import CacheClient
from lmcache_mp.liveness import LifeLine
from lmcache_mp.messages import (
    CommitStore,
    Hello,
    PrepareRetrieve,
    PrepareStore,
    RegisterNamespace,
    Release,
    Status,
)
from lmcache_mp.rundir import RunDir, boot_id

MAX_MESSAGES = 20_000
MAX_CONNECTIONS = 300
OVERSIZED_BYTES = wire.MAX_MESSAGE_BYTES + 1


class Peer:
    """One misbehaving peer: where it connects, and until when."""

    def __init__(self, run_dir: RunDir, tcp: str, seed: int, seconds: float) -> None:
        self.run_dir = run_dir
        self.tcp = tcp
        self.rng = random.Random(seed)
        self._end_s = time.monotonic() + seconds

    def rounds(self, limit: int) -> Iterator[int]:
        """So many, or until the time is up."""
        for number in range(limit):
            if time.monotonic() > self._end_s:
                return
            yield number

    def address(self) -> str:
        """One of the two that the bus has."""
        return self.rng.choice([self.run_dir.bus_address, self.tcp])

    @contextlib.contextmanager
    def dealer(self) -> Iterator[zmq.Socket[Any]]:
        """A bare socket that is connected, or will be."""
        dealer: zmq.Socket[Any] = zmq.Context.instance().socket(zmq.DEALER)
        for option, value in DEALER_OPTIONS:
            dealer.setsockopt(option, value)
        dealer.setsockopt(zmq.SNDTIMEO, 50)
        dealer.connect(self.address())
        try:
            yield dealer
        finally:
            dealer.close(linger=0)

    def hello(self) -> tuple[LifeLine, Hello]:
        """A client's hello, with a life to prove and leases that it never had."""
        line = LifeLine.create(self.run_dir.clients)
        return line, Hello(
            who="peer",
            pid=os.getpid(),
            client_id=line.client_id,
            lock_inode=line.inode,
            boot_id=boot_id(),
            leases=tuple(self.rng.sample(range(1, 1000), 20)),
        )


def garbage(peer: Peer) -> None:
    """Frames and bytes of every kind but the right one."""
    rng = peer.rng
    valid = wire.frame(wire.REQUEST, 7, 0, Status())
    for _ in peer.rounds(MAX_CONNECTIONS):
        if rng.random() < 0.3:
            _raw_bytes(peer)
            continue
        with peer.dealer() as dealer, contextlib.suppress(zmq.Again):
            for _ in range(rng.randrange(1, 20)):
                mutated = bytearray(valid)
                mutated[rng.randrange(len(mutated))] = rng.randrange(256)
                header = wire.HEADER.pack(wire.MAGIC, wire.PROTOCOL_VERSION, wire.REQUEST, 0, 1, 0)
                frames = rng.choice(
                    [
                        [bytes(mutated)],
                        [rng.randbytes(rng.randrange(200))],
                        [header + rng.randbytes(rng.randrange(2000))],
                        [header + b"\x91" * 100_000],
                        [b""] * rng.randrange(1, 500),
                        [valid, valid],
                        [bytes(OVERSIZED_BYTES)] if rng.random() < 0.05 else [b"KV"],
                    ]
                )
                dealer.send_multipart(frames)
            time.sleep(0.005)


def _raw_bytes(peer: Peer) -> None:
    scheme, _, where = peer.address().partition("://")
    family = socket.AF_UNIX if scheme == "ipc" else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family) as raw:
        raw.settimeout(0.05)
        host, _, port = where.rpartition(":")
        raw.connect(where if scheme == "ipc" else (host, int(port)))
        greeting = b"\xff" + bytes(8) + b"\x7f" + bytes([3, peer.rng.randrange(2)]) + b"NULL"
        raw.sendall(peer.rng.choice([b"", greeting.ljust(64, b"\0")]) + peer.rng.randbytes(5000))
        time.sleep(0.005)


def mute(peer: Peer) -> None:
    """Ask for leases and for long answers, and read none of them."""
    line, hello = peer.hello()
    with peer.dealer() as dealer:
        messages: list[Any] = [hello, *(RegisterNamespace(namespace=n) for n in NAMESPACES)]
        for call_id in peer.rounds(MAX_MESSAGES):
            if call_id >= len(messages):
                place = peer.rng.randrange(len(NAMESPACES))
                keys = prompt_keys(place, peer.rng.randrange(PROMPTS[place])).buffer
                namespace_id = peer.rng.randrange(4)
                message = peer.rng.choice([Status(), PrepareRetrieve(namespace_id, keys)])
            else:
                message = messages[call_id]
            with contextlib.suppress(zmq.Again):
                dealer.send(wire.frame(wire.REQUEST, call_id + 1, 0, message))
    line.close()


def vanishing(peer: Peer) -> None:
    """Connect, perhaps say hello or reserve something, and be gone."""
    for _ in peer.rounds(MAX_CONNECTIONS):
        line, hello = peer.hello()
        with peer.dealer() as dealer, contextlib.suppress(zmq.Again):
            for call_id in range(peer.rng.randrange(4)):
                place = peer.rng.randrange(len(NAMESPACES))
                keys = prompt_keys(place, peer.rng.randrange(PROMPTS[place])).buffer
                message = hello if call_id == 0 else PrepareStore(peer.rng.randrange(4), keys)
                dealer.send(wire.frame(wire.REQUEST, call_id + 1, 0, message))
            time.sleep(peer.rng.choice([0.0, 0.001, 0.01]))
        line.close()


def stale(peer: Peer) -> None:
    """Give back, commit and ask under leases and epochs that are not its own, at full speed."""
    line, hello = peer.hello()
    with peer.dealer() as dealer, contextlib.suppress(zmq.Again):
        dealer.send(wire.frame(wire.REQUEST, 1, 0, hello))
        for call_id in peer.rounds(MAX_MESSAGES):
            lease_id = peer.rng.randrange(1, 100_000)
            kind, message = peer.rng.choice(
                [
                    (wire.NOTICE, Release(lease_id)),
                    (wire.REQUEST, CommitStore(lease_id)),
                    (wire.REQUEST, CommitStore(lease_id, peer.rng.randbytes(8))),
                ]
            )
            epoch = peer.rng.choice([0, 1, peer.rng.getrandbits(64)])
            dealer.send(wire.frame(kind, call_id + 2, epoch, message))
            if call_id % 64 == 0:
                with contextlib.suppress(zmq.Again):
                    while True:
                        dealer.recv(zmq.DONTWAIT)
    line.close()


def remote(peer: Peer) -> None:
    """Look up over tcp, as a client that shares no run directory: it must get no bytes."""
    place = peer.rng.randrange(len(NAMESPACES))
    with CacheClient.connect(peer.tcp, NAMESPACES[place], timeout_s=1.0, who="remote") as cache:
        for _ in peer.rounds(MAX_MESSAGES):
            keys = prompt_keys(place, peer.rng.randrange(PROMPTS[place]))
            cache.lookup(keys, hold_s=1.0)
            if len(cache.begin_store(keys)) or cache.begin_retrieve(keys).chunks:
                raise AssertionError("a client that cannot prove its life was given bytes")


def waiting(peer: Peer) -> None:
    """Have a store wait for an answer, and die of kill -9."""
    _, hello = peer.hello()
    client = bus.Client(peer.run_dir.bus_address)
    client.call(hello)
    space = client.call(RegisterNamespace(namespace=NAMESPACES[0])).namespace_id
    keys = prompt_keys(0, peer.rng.randrange(PROMPTS[0])).buffer
    client.start(PrepareStore(space, keys))
    client.call(Status())  # answered after the engine has seen the store
    os.kill(os.getpid(), signal.SIGKILL)


KINDS: dict[Kind, Callable[[Peer], None]] = {
    Kind.PEER_GARBAGE: garbage,
    Kind.PEER_MUTE: mute,
    Kind.PEER_VANISHES: vanishing,
    Kind.PEER_STALE: stale,
    Kind.PEER_TCP: remote,
    Kind.CLIENT_DIES_WAITING: waiting,
}


def main() -> int:
    """The process; its exit code."""
    kind, run_dir, tcp, seed, seconds = sys.argv[1:]
    logging.getLogger("lmcache_mp").setLevel(logging.CRITICAL)  # what fails open is no news
    with contextlib.suppress(bus.BusError):
        KINDS[Kind(kind)](Peer(RunDir(Path(run_dir)), tcp, int(seed), float(seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
