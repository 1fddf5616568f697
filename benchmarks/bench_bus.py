"""What does a call over the bus cost, beside a raw pyzmq echo?

python -m benchmarks.bench_bus
"""

from __future__ import annotations

import collections
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.callers import calling, of_crowds
from benchmarks.echo import FRAME, Ping, bus_call, raw_call, raw_socket, serving
from benchmarks.harness import Figure, of_latencies, parser, pin, publish, take_turns
from bus import Client, PendingCall
from bus.schema import Done

CALLS = 500
PIPELINED_CALLS = 5000
IN_FLIGHT = 100
FOUR_CLIENTS_S = 1.0


@dataclass(frozen=True, slots=True)
class Servers:
    """Both servers, to be pinned together."""

    raw: str
    bus: str
    pids: tuple[int, ...]

    def pin(self, cpus: Sequence[int]) -> None:
        """Run both on these CPUs."""
        for pid in self.pids:
            pin(pid, cpus)


def blocking(servers: Servers, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each blocking call, raw and on the bus."""
    with raw_call(servers.raw) as floor, bus_call(servers.bus) as subject:
        return take_turns(floor, subject, rounds=rounds, calls=CALLS)


def pipelined(servers: Servers, rounds: int) -> Figure:
    """Calls a second of one client that always has calls in flight."""
    with raw_socket(servers.raw) as socket, Client(servers.bus) as client:

        def floor() -> None:
            for number in range(PIPELINED_CALLS):
                socket.send(FRAME)
                if number >= IN_FLIGHT:
                    socket.recv()
            for _ in range(min(IN_FLIGHT, PIPELINED_CALLS)):
                socket.recv()

        def subject() -> None:
            calls: collections.deque[PendingCall[Done]] = collections.deque()
            for _ in range(PIPELINED_CALLS):
                calls.append(client.start(Ping()))
                if len(calls) > IN_FLIGHT:
                    calls.popleft().result()
            for call in calls:
                call.result()

        floor_s, subject_s = take_turns(floor, subject, rounds=rounds, calls=1)
    return Figure(
        name="pipelined empty calls, one client, two cores",
        unit="calls/s",
        floor=round(PIPELINED_CALLS * rounds / sum(floor_s), 1),
        subject=round(PIPELINED_CALLS * rounds / sum(subject_s), 1),
        bar=">= 0.5",
    )


def four_clients(servers: Servers, rounds: int) -> Iterator[Figure]:
    """Rate and tail of four blocking client processes, all on all CPUs."""
    floor_s: list[float] = []
    subject_s: list[float] = []
    seconds = str(FOUR_CLIENTS_S)
    for _ in range(rounds):
        floor_s += calling(4, "benchmarks.echo", "call", "raw", servers.raw, seconds)
        subject_s += calling(4, "benchmarks.echo", "call", "bus", servers.bus, seconds)
    yield from of_crowds(
        "empty calls of 4 blocking clients", rounds * FOUR_CLIENTS_S, floor_s, subject_s
    )


def figures(servers: Servers, rounds: int) -> Iterator[Figure]:
    """All figures, one after the other."""
    cpus = sorted(os.sched_getaffinity(0))
    pin(0, cpus[:1])
    for where, server_cpus in (("one core", cpus[:1]), ("two cores", cpus[1:2] or cpus)):
        servers.pin(server_cpus)
        floor_s, subject_s = blocking(servers, rounds)
        yield of_latencies(f"blocking empty call, {where}", "<= 1.5", floor_s, subject_s)
    yield pipelined(servers, rounds)
    pin(0, cpus)
    servers.pin(cpus)
    yield from four_clients(servers, max(1, rounds // 5))


@contextlib.contextmanager
def both_servers() -> Iterator[Servers]:
    """A raw echo server and one on the bus."""
    with tempfile.TemporaryDirectory(prefix="bus-") as directory:
        raw, bus = f"ipc://{directory}/raw.sock", f"ipc://{directory}/bus.sock"
        with serving("raw", raw) as raw_pid, serving("bus", bus) as bus_pid:
            yield Servers(raw, bus, (raw_pid, bus_pid))


def main() -> int:
    """The command; its exit code."""
    options = parser(__doc__ or "").parse_args()
    began_s = time.monotonic()
    with both_servers() as servers:
        measured = list(figures(servers, options.rounds))
    publish("bench_bus", measured, options.json)
    print(f"took {time.monotonic() - began_s:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
