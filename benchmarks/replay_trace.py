"""Replay a production trace through the server and verify every byte that comes back.

    python -m benchmarks.replay_trace ../shared/traces/mooncake_conversation_trace.jsonl --clients 2

Client processes replay the trace's prompts, request `i` by client `i mod clients`, each one request
after the other: look it up, read what is there, store what is missing. A chunk's bytes follow from
its key, so that whatever is read can be told right from wrong. Clients may run apart, so the order
of requests is the trace's only within a client (with --speed: about everywhere).

Exit code 1 if a byte was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.replay_client import Job, Line, Ready, Start, Tally, decode_line
from benchmarks.replay_client import Progress as ClientProgress
from benchmarks.replay_report import ReplayReport, Workload
from benchmarks.server import ServerFailed, own_server, status, wait_until_populated
from benchmarks.trace import (
    BLOCK_TOKENS,
    BadTrace,
    TraceRequest,
    read_trace,
    total_blocks,
    unlimited_hit_blocks,
)
from bus import BusError
from lmcache_mp.client import Namespace
from lmcache_mp.rundir import RunDir, RunDirError, default_run_dir
from lmcache_mp.units import Size

START_DELAY_S = 0.1


class ClientFailed(Exception):
    """A client process ended before it was done."""


class Clients:
    """The client processes. Each has a thread here that reads its lines into one queue."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        command = [sys.executable, "-m", "benchmarks.replay_client"]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in jobs
        ]
        self._lines: queue.SimpleQueue[tuple[int, Line | None]] = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=self._read, args=(index,)) for index in range(len(jobs))
        ]
        for reader in self._readers:
            reader.start()
        for index, job in enumerate(jobs):
            self._tell(index, job)

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for reader in self._readers:
            reader.join()
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def start(self) -> float:
        """Wait until all are ready, and let them begin at one time, which is returned."""
        for _ in self._processes:
            assert isinstance(self._next()[1], Ready)
        at_s = time.monotonic() + START_DELAY_S
        for index in range(len(self._processes)):
            self._tell(index, Start(at_s))
        return at_s

    def tallies(self, progress: Progress) -> list[Tally]:
        """Wait until all are done; shows how far they are."""
        done = [0] * len(self._processes)
        tallies: dict[int, Tally] = {}
        task = progress.task_ids[0]
        while len(tallies) < len(self._processes):
            index, line = self._next()
            if isinstance(line, Tally):
                tallies[index] = line
            if isinstance(line, ClientProgress | Tally):
                done[index] = line.requests
            progress.update(task, completed=sum(done))
        return [tallies[index] for index in sorted(tallies)]

    def _next(self) -> tuple[int, Line]:
        index, line = self._lines.get()
        if line is None:
            raise ClientFailed(f"client {index} ended before it was done; see its message above")
        return index, line

    def _tell(self, index: int, message: Job | Start) -> None:
        pipe = self._processes[index].stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):  # its reader notices
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


def replay(run_dir: RunDir, options: argparse.Namespace, requests: list[TraceRequest]) -> int:
    """Replay against the server of a run directory, report; the exit code."""
    before = status(run_dir)
    namespace = Namespace(
        model="replay",
        revision=options.run_id or uuid.uuid4().hex,
        dtype="uint8",
        chunk_tokens=options.chunk_tokens,
        shard_bytes=options.chunk_bytes,
    )
    jobs = [
        Job(
            trace=str(options.trace),
            limit=options.requests,
            first=first,
            clients=options.clients,
            address=run_dir.bus_address,
            namespace=namespace,
            timeout_s=options.timeout_s,
            speed=options.speed,
        )
        for first in range(options.clients)
    ]
    with Clients(jobs) as clients, _progress(len(requests)) as progress:
        started_s = clients.start()
        tallies = clients.tallies(progress)
    after = status(run_dir)
    workload = Workload(
        trace=options.trace.name,
        clients=options.clients,
        speed=options.speed,
        chunk_tokens=options.chunk_tokens,
        chunk_bytes=options.chunk_bytes,
        l1_bytes=before.l1.capacity_bytes,
        unlimited_hit_rate=round(unlimited_hit_blocks(requests) / total_blocks(requests), 4),
    )
    seconds = max(tally.ended_at_s for tally in tallies) - started_s
    report = ReplayReport.of(workload, seconds, tallies, before.counters, after.counters)
    return _publish(report, options.json)


def _publish(report: ReplayReport, file: Path | None) -> int:
    Console().print(report.table())
    print(report.json_line(), flush=True)
    if file is not None:
        with open(file, "a") as lines:
            lines.write(report.json_line() + "\n")
    return 1 if report.wrong_bytes else 0


@contextlib.contextmanager
def _progress(requests: int) -> Iterator[Progress]:
    """A bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        progress.add_task("requests", total=requests)
        yield progress


@contextlib.contextmanager
def _server(options: argparse.Namespace) -> Iterator[RunDir]:
    if options.run_dir is None and options.server is None:
        with own_server(str(options.l1_size)) as run_dir:
            yield run_dir
        return
    run_dir = RunDir(options.run_dir) if options.run_dir else default_run_dir(options.server)
    wait_until_populated(run_dir, lambda: False)
    yield run_dir


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.replay_trace",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("trace", type=Path, help="a trace file, JSON lines")
    add("--clients", type=_positive, default=2, help="client processes (default: 2)")
    add("--requests", type=_positive, metavar="N", help="only the trace's first N requests")
    add("--speed", type=float, metavar="X", help="in trace time, X times as fast")
    add("--chunk-tokens", type=_divisor, default=BLOCK_TOKENS, metavar="N",
        help="tokens per chunk, a divisor of 512 (default: 512, the trace's block)")  # fmt: skip
    add("--chunk-bytes", type=_chunk_bytes, default=Size("256KiB"), metavar="SIZE",
        help="bytes per chunk (default: 256KiB)")  # fmt: skip
    add("--l1-size", type=_size, metavar="SIZE", help="L1 of the server started (default: 4GiB)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--server", metavar="NAME", help="a running server instead of one of its own"
    )
    where.add_argument("--run-dir", type=Path, metavar="DIR", help="the same, by its run directory")
    add("--run-id", metavar="ID", help="of an earlier run with --server: find what it has stored")
    add("--timeout-s", type=float, default=10.0, metavar="S",
        help="a call that takes longer fails open, and is counted (default: 10)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="append the JSON line to this file, too")
    options = parser.parse_args(arguments)
    if options.l1_size is None:
        options.l1_size = Size("4GiB")
    elif options.server or options.run_dir:
        parser.error("--l1-size is of the server that is started here, not of one that runs")
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _divisor(text: str) -> int:
    number = _positive(text)
    if BLOCK_TOKENS % number:
        raise argparse.ArgumentTypeError(f"{number} does not divide {BLOCK_TOKENS}")
    return number


def _size(text: str) -> Size:
    try:
        return Size(text)
    except ValueError as fault:
        raise argparse.ArgumentTypeError(str(fault)) from None


def _chunk_bytes(text: str) -> Size:
    size = _size(text)
    if size < 8:
        raise argparse.ArgumentTypeError(f"a chunk of {size} bytes says too little")
    return size


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    options = _parse(arguments)
    try:
        requests = read_trace(options.trace, options.requests)
        if not total_blocks(requests):
            raise BadTrace(f"{options.trace} has no prompts")
        with _server(options) as run_dir:
            return replay(run_dir, options, requests)
    except (OSError, BadTrace, BusError, RunDirError, ServerFailed, ClientFailed) as fault:
        print(f"replay_trace: {fault}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
