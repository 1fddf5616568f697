"""Peers of the bus that misbehave for a moment: over the server's own ipc socket, and bounded.

python -m benchmarks.chaos_peers KIND RUN_DIR SEED SECONDS
"""

from __future__ import annotations

import contextlib
import os
import random
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
UNIX_PREFIX = "ipc://"


class Peer:
    """One misbehaving peer: where it connects, and until when."""

    def __init__(self, run_dir: RunDir, seed: int, seconds: float) -> None:
        self.run_dir = run_dir
        self.rng = random.Random(seed)
        self._end_s = time.monotonic() + seconds

    def rounds(self, limit: int) -> Iterator[int]:
        """So many, or until the time is up."""
        for number in range(limit):
            if time.monotonic() > self._end_s:
                return
            yield number

    @contextlib.contextmanager
    def dealer(self) -> Iterator[zmq.Socket[Any]]:
        """A bare socket that is connected, or will be."""
        dealer: zmq.Socket[Any] = zmq.Context.instance().socket(zmq.DEALER)
        for option, value in DEALER_OPTIONS:
            dealer.setsockopt(option, value)
        dealer.setsockopt(zmq.SNDTIMEO, 50)
        dealer.connect(self.run_dir.bus_address)
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
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(0.05)
        raw.connect(peer.run_dir.bus_address.removeprefix(UNIX_PREFIX))
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


KINDS: dict[Kind, Callable[[Peer], None]] = {
    Kind.PEER_GARBAGE: garbage,
    Kind.PEER_MUTE: mute,
    Kind.PEER_VANISHES: vanishing,
    Kind.PEER_STALE: stale,
}


def main() -> int:
    """The process; its exit code."""
    kind, run_dir, seed, seconds = sys.argv[1:]
    with contextlib.suppress(bus.BusError):
        KINDS[Kind(kind)](Peer(RunDir(Path(run_dir)), int(seed), float(seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
