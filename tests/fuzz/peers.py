"""Peers that misbehave over real sockets, one burst at a time, each counted."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator

import zmq

from bus import wire
from bus.dealer import options
from lmcache_mp import messages as m
from lmcache_mp.liveness import LifeLine
from lmcache_mp.rundir import RunDir, boot_id
from tests.fuzz.endless import GREETING
from tests.fuzz.grammar import WEIGHTED, Grammar

HARMLESS = [kind for kind in WEIGHTED if kind is not m.Drain]
"""Draining does what it says: whoever may speak to the bus may stop the server."""

SPOKEN = 256
MANY_FRAMES = 10_000
GARBAGE_BYTES = 64 << 20

PATIENCE_MS = 1000


class Peers:
    """All that a seed makes up. `sent` counts by kind of burst, `messages` what is in them."""

    def __init__(self, run_dir: RunDir, seed: int) -> None:
        self._run_dir = run_dir
        self._rng = random.Random(seed)
        self.messages = 0
        self.sent: Counter[str] = Counter()
        self._often: list[Callable[[], None]] = [
            *(self.speaks,) * 8,
            *(self.vanishes,) * 4,
            self.never_reads,
            self.chooses_its_id,
            self.raw_bytes,
        ]
        self._seldom: list[Callable[[], None]] = [
            self.many_frames,
            self.large_message,
            self.large_stream,
        ]

    def burst(self) -> None:
        """One of the kinds, the expensive ones seldom."""
        kinds = self._seldom if self._rng.random() < 0.01 else self._often
        kind = self._rng.choice(kinds)
        kind()
        self.sent[kind.__name__] += 1

    def speaks(self) -> None:
        """A client that can prove its life says anything to what it may or may not have."""
        line, hello = self._introduction()
        grammar = Grammar(self._rng.getrandbits(32), HARMLESS)
        with self.dealer() as dealer, contextlib.suppress(zmq.Again):
            self._send(dealer, wire.frame(wire.REQUEST, 1 << 30, 0, hello))
            for _ in range(SPOKEN):
                self._send(dealer, grammar.well_framed())
                self._read_some(dealer)
            dealer.send_multipart(grammar.ill_framed())
            self.messages += 1
        line.close()

    def vanishes(self) -> None:
        """Says hello, reserves, and is gone without reading a word."""
        for _ in range(8):
            line, hello = self._introduction()
            with self.dealer() as dealer, contextlib.suppress(zmq.Again):
                self._send(dealer, wire.frame(wire.REQUEST, 1, 0, hello))
                store = m.PrepareStore(1, bytes(range(32)) * self._rng.randrange(1, 5))
                self._send(dealer, wire.frame(wire.REQUEST, 2, 0, store))
            line.close()

    def never_reads(self) -> None:
        """Asks for long answers and takes none."""
        with self.dealer() as dealer, contextlib.suppress(zmq.Again):
            dealer.setsockopt(zmq.RCVHWM, 1)
            for call_id in range(4 * SPOKEN):
                self._send(dealer, wire.frame(wire.REQUEST, call_id, 0, m.GetConfig()))

    def chooses_its_id(self) -> None:
        """Two connections under one name of their own making: the second is not let in."""
        name = b"mine" + self._rng.randbytes(self._rng.choice((1, 200)))
        with self.dealer(name) as first, self.dealer(name) as second:
            for dealer in (first, second):
                with contextlib.suppress(zmq.Again):
                    for call_id in range(8):
                        self._send(dealer, wire.frame(wire.REQUEST, call_id, 0, m.Heartbeat()))
            assert first.poll(PATIENCE_MS) or second.poll(PATIENCE_MS)

    def raw_bytes(self) -> None:
        """Bytes that are no ZMTP, or are so only in the beginning."""
        beginnings = (b"", GREETING, GREETING + b"\x04\x19\x05READY", b"GET / HTTP/1.1\r\n")
        self._stream(self._rng.choice(beginnings) + self._rng.randbytes(4096))

    def many_frames(self) -> None:
        """One message of ten thousand frames."""
        with self.dealer() as dealer, contextlib.suppress(zmq.Again):
            dealer.send_multipart([b"x"] * MANY_FRAMES)
            self.messages += 1
            self._await_answer(dealer)

    def large_message(self) -> None:
        """One frame of 64 MiB."""
        with self.dealer() as dealer, contextlib.suppress(zmq.Again):
            dealer.send(bytes(GARBAGE_BYTES))
            self.messages += 1
            self._await_answer(dealer)

    def large_stream(self) -> None:
        """64 MiB of garbage behind a good greeting."""
        self._stream(GREETING + self._rng.randbytes(1 << 20) * (GARBAGE_BYTES >> 20))

    @contextlib.contextmanager
    def dealer(self, name: bytes = b"") -> Iterator[zmq.Socket[bytes]]:
        """A bare socket that is connected, or will be."""
        dealer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        for option, value in options(None):
            dealer.setsockopt(option, value)
        dealer.setsockopt(zmq.SNDTIMEO, PATIENCE_MS)
        if name:
            dealer.setsockopt(zmq.ROUTING_ID, name)
        dealer.connect(self._run_dir.bus_address)
        try:
            yield dealer
        finally:
            dealer.close(linger=500)  # what was said arrives, then it is gone

    def _introduction(self) -> tuple[LifeLine, m.Hello]:
        line = LifeLine.create(self._run_dir.clients)
        return line, m.Hello(
            who="hostile",
            pid=os.getpid(),
            client_id=line.client_id,
            lock_inode=line.inode,
            boot_id=boot_id(),
            leases=tuple(self._rng.sample(range(1, 1000), 20)),
        )

    def _send(self, dealer: zmq.Socket[bytes], data: bytes) -> None:
        dealer.send(data)
        self.messages += 1

    def _read_some(self, dealer: zmq.Socket[bytes]) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                dealer.recv(zmq.DONTWAIT)

    def _await_answer(self, dealer: zmq.Socket[bytes]) -> None:
        """Until all that was sent has been taken: an answer, or the end of the connection."""
        with contextlib.suppress(zmq.Again):
            dealer.setsockopt(zmq.SNDTIMEO, 0)
            self._send(dealer, wire.frame(wire.REQUEST, 1 << 40, 0, m.Heartbeat()))
        dealer.poll(200)

    def _stream(self, data: bytes) -> None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as raw:
            raw.settimeout(PATIENCE_MS / 1000)
            raw.connect(self._run_dir.bus_address.removeprefix("ipc://"))
            raw.sendall(data)
            self.messages += 1
