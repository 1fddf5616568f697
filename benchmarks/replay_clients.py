"""The client processes of a replay, seen from the process that started them."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from benchmarks.replay_client import Job, Line, Progress, Ready, Start, Tally, decode_line

START_DELAY_S = 0.1


class ClientFailed(Exception):
    """A client process ended before it was done."""


class Clients:
    """Running client processes. What they say is read by a thread each into one queue."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self._processes = processes
        self._lines: queue.SimpleQueue[tuple[int, Line | None]] = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=self._read, args=(index,)) for index in range(len(processes))
        ]
        for reader in self._readers:
            reader.start()

    def start(self, jobs: Sequence[Job]) -> float:
        """Give each its job, and let all begin at one time, which is returned."""
        for index, job in enumerate(jobs):
            self._tell(index, job)
        for _ in jobs:
            assert isinstance(self._next()[1], Ready)
        at_s = time.monotonic() + START_DELAY_S
        for index in range(len(jobs)):
            self._tell(index, Start(at_s))
        return at_s

    def tallies(self, show_requests: Callable[[int], None]) -> list[Tally]:
        """Wait until all are done; `show_requests` is told how many requests are."""
        done = [0] * len(self._processes)
        tallies: dict[int, Tally] = {}
        while len(tallies) < len(self._processes):
            index, line = self._next()
            if isinstance(line, Tally):
                tallies[index] = line
            if isinstance(line, Progress | Tally):
                done[index] = line.requests
                show_requests(sum(done))
        return [tallies[index] for index in sorted(tallies)]

    def end(self) -> None:
        """End the processes, whatever they do, and the threads."""
        for process in self._processes:
            process.kill()
            process.wait()
        for reader in self._readers:
            reader.join()

    def _next(self) -> tuple[int, Line]:
        index, line = self._lines.get()
        if line is None:
            raise ClientFailed(f"client {index} ended before it was done; see what it said above")
        return index, line

    def _tell(self, index: int, message: Job | Start) -> None:
        pipe = self._processes[index].stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: its reader notices
            pipe.write(msgspec.json.encode(message) + b"\n")
            pipe.flush()

    def _read(self, index: int) -> None:
        pipe = self._processes[index].stdout
        assert pipe is not None
        for line in pipe:
            message = decode_line(line)
            self._lines.put((index, message))
            if isinstance(message, Tally):
                return
        self._lines.put((index, None))


@contextlib.contextmanager
def client_processes(count: int) -> Iterator[Clients]:
    """So many client processes, which wait for their jobs; ended on leaving."""
    command = [sys.executable, "-m", "benchmarks.replay_client"]
    with contextlib.ExitStack() as stack:
        processes = []
        for _ in range(count):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        clients = Clients(processes)
        stack.callback(clients.end)
        yield clients
