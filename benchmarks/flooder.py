"""A peer that floods a bus, or a raw echo, as fast as it can until its input ends.

    python -m benchmarks.flooder KIND ADDRESS

To either server it sends the same frames.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from enum import StrEnum

import zmq

from benchmarks.echo import raw_socket
from bus import wire
from lmcache_mp.messages import Heartbeat

IN_FLIGHT = 100
LARGE_IN_FLIGHT = 4
LARGE_BYTES = wire.MAX_MESSAGE_BYTES


class Flood(StrEnum):
    """What it does."""

    CALLS = "calls"
    """Small requests, `IN_FLIGHT` at a time, every answer read."""
    MUTE = "mute"
    """Small requests, no answer read."""
    GARBAGE = "garbage"
    """Requests of 1 MiB with a body that means nothing."""
    VANISHING = "vanishing"
    """A connection for every request; every second one is gone before it is answered."""


SMALL = wire.frame(wire.REQUEST, 1, wire.NO_EPOCH, Heartbeat())
LARGE = SMALL[: wire.HEADER.size] + os.urandom(LARGE_BYTES - wire.HEADER.size)


def pipelined(address: str, frame: bytes, in_flight: int) -> None:
    """Always so many requests on their way."""
    with raw_socket(address) as socket:
        for _ in range(in_flight):
            socket.send(frame)
        while True:
            socket.recv(copy=False)
            socket.send(frame, copy=False)


def mute(address: str) -> None:
    """Requests without end."""
    with raw_socket(address) as socket:
        while True:
            socket.send(SMALL)


def vanishing(address: str) -> None:
    """Connections without end."""
    for number in itertools.count():
        with raw_socket(address) as socket:
            socket.setsockopt(zmq.RCVTIMEO, 1000)
            socket.send(SMALL)
            with contextlib.suppress(zmq.Again):
                if number % 2:
                    socket.recv()


FLOODS: dict[Flood, Callable[[str], None]] = {
    Flood.CALLS: lambda address: pipelined(address, SMALL, IN_FLIGHT),
    Flood.MUTE: mute,
    Flood.GARBAGE: lambda address: pipelined(address, LARGE, LARGE_IN_FLIGHT),
    Flood.VANISHING: vanishing,
}


@contextlib.contextmanager
def flooding(flood: Flood, address: str) -> Iterator[None]:
    """A process that floods meanwhile."""
    command = [sys.executable, "-m", "benchmarks.flooder", flood, address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"the flooder, {flood}, did not start")
            yield
            if process.poll() is not None:
                raise RuntimeError(f"the flooder, {flood}, ended with {process.returncode}")
        finally:
            process.kill()


def main() -> None:
    """The process."""

    def end_with_input() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=end_with_input, daemon=True).start()
    _, kind, address = sys.argv
    print("ready", flush=True)
    FLOODS[Flood(kind)](address)


if __name__ == "__main__":
    main()
