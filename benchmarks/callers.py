"""Several client processes that make blocking calls at the same time.

A calling process is a module whose last argument is a number of seconds and that ends in
`call_for`: it says "ready", waits on its input for the time to begin, and at last says how long
each of its calls took.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from benchmarks.harness import Figure
from benchmarks.latency import Latency

BEGIN_AFTER_S = 0.05


def calling(clients: int, module: str, *arguments: str) -> list[float]:
    """The seconds of every call that so many processes make in the same time."""
    command = [sys.executable, "-m", module, *arguments]
    with contextlib.ExitStack() as stack:
        processes = []
        for _ in range(clients):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"a client, {' '.join(command[2:])}, did not start")
        begin_s = time.monotonic() + BEGIN_AFTER_S
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{begin_s!r}\n".encode())
            process.stdin.flush()
        outputs = [process.communicate()[0] for process in processes]
    return [taken_s for output in outputs for taken_s in msgspec.json.decode(output)]


def call_for(call: Callable[[], None], seconds: float) -> None:
    """In a calling process: calls from the time that its input says, as many as fit."""
    taken_s: list[float] = []
    clock = time.monotonic
    call()
    print("ready", flush=True)
    begin_s = float(sys.stdin.readline())
    time.sleep(max(0.0, begin_s - clock()))
    began_s, end_s = clock(), begin_s + seconds
    while began_s < end_s:
        call()
        ended_s = clock()
        taken_s.append(ended_s - began_s)
        began_s = ended_s
    sys.stdout.buffer.write(msgspec.json.encode(taken_s))


def of_crowds(
    name: str, seconds: float, floor_s: Sequence[float], subject_s: Sequence[float]
) -> Iterator[Figure]:
    """Rate and tail of calls that crowds of callers made in that many seconds."""
    floor, subject = Latency.of(floor_s), Latency.of(subject_s)
    yield Figure(
        name=name,
        unit="calls/s",
        floor=round(len(floor_s) / seconds, 1),
        subject=round(len(subject_s) / seconds, 1),
        bar=">= 0.3",
        floor_latency=floor,
        subject_latency=subject,
    )
    assert floor.p99_ms is not None
    assert subject.p99_ms is not None
    yield Figure(
        name=f"{name}: tail",
        unit="us, p99",
        floor=round(floor.p99_ms * 1000, 1),
        subject=round(subject.p99_ms * 1000, 1),
        bar="<= 5",
    )
