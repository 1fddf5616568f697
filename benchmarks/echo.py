"""The smallest servers there are, one on raw pyzmq and one on the bus, and clients of both.

python -m benchmarks.echo serve raw|bus ADDRESS            says "ready", ends with its input
python -m benchmarks.echo call raw|bus ADDRESS SECONDS     a `benchmarks.callers` process
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import zmq

from benchmarks.callers import call_for
from bus import Call, Client, Done, Request, Server, wire


class Ping(Request[Done], frozen=True):
    """Nothing is asked."""


FRAME = wire.frame(wire.REQUEST, 1, 0, Ping())
"""What a raw client sends: as many bytes as the bus does."""


def serve_raw(address: str) -> None:
    """Send every message back."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
    socket.bind(address)
    _ready()
    while True:
        socket.send_multipart(socket.recv_multipart())


def serve_bus(address: str) -> None:
    """Answer every `Ping` with `Done`."""

    def on_ping(call: Call, message: Ping) -> Done:
        return done

    done = Done()
    server = Server([Ping], epoch=1)
    server.on(Ping, on_ping)
    server.bind(address)
    _ready()
    server.run()


def raw_socket(address: str) -> zmq.Socket[bytes]:
    """A connected socket of a raw client."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(address)
    return socket


@contextlib.contextmanager
def raw_call(address: str) -> Iterator[Callable[[], None]]:
    """One blocking round trip on raw pyzmq."""
    with raw_socket(address) as socket:

        def call() -> None:
            socket.send(FRAME)
            socket.recv()

        yield call


@contextlib.contextmanager
def bus_call(address: str) -> Iterator[Callable[[], None]]:
    """One blocking round trip on the bus."""
    with Client(address) as client:

        def call() -> None:
            client.call(Ping())

        yield call


@contextlib.contextmanager
def serving(kind: str, address: str) -> Iterator[int]:
    """A server process of that kind; yields its pid.

    In a session of its own, as the engine is: the kernel shares out busy CPUs by session.
    """
    command = [sys.executable, "-m", "benchmarks.echo", "serve", kind, address]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"the {kind} echo server did not start")
            yield process.pid
        finally:
            process.kill()


def _ready() -> None:
    def end_with_input() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=end_with_input, daemon=True).start()
    print("ready", flush=True)


if __name__ == "__main__":
    role, which, where, *seconds = sys.argv[1:]
    if role == "serve":
        {"raw": serve_raw, "bus": serve_bus}[which](where)
    else:
        with {"raw": raw_call, "bus": bus_call}[which](where) as blocking_call:
            call_for(blocking_call, float(seconds[0]))
