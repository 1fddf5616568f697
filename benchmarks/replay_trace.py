"""Replay a production trace through the server and verify every byte that comes back.

    python -m benchmarks.replay_trace ../shared/traces/mooncake_conversation_trace.jsonl

Client processes replay the trace's prompts, request i by client i modulo clients, each of them one
request after the other: look it up, read what is there, store what is missing. A chunk's bytes
follow from its key, so whatever is read can be told right from wrong. Clients may drift apart: the
order is the trace's within a client, and with --speed about everywhere. A replay shares no chunk
with an earlier one unless --run-id says so.

Exit code 1 if a byte was wrong, 2 if the replay could not be done.
"""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.replay_client import Job
from benchmarks.replay_clients import ClientFailed, client_processes
from benchmarks.replay_options import DEFAULT_L1_SIZE, Options
from benchmarks.replay_report import ReplayReport, Workload
from benchmarks.server import ServerFailed, own_server, status, wait_until_populated
from benchmarks.trace import (
    BadTrace,
    TraceRequest,
    read_trace,
    total_blocks,
    unlimited_hit_blocks,
)
from bus import BusError
from lmcache_mp.client import Namespace
from lmcache_mp.rundir import RunDir, RunDirError, default_run_dir


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    options = Options.parse(arguments, __doc__ or "")
    try:
        requests = read_trace(options.trace, options.requests)
        if not total_blocks(requests):
            raise BadTrace(f"{options.trace} has no prompts")
        with contextlib.ExitStack() as stack:
            with Console(stderr=True).status("waiting until all of L1 is populated"):
                run_dir = stack.enter_context(_server(options))
            report = replay(run_dir, options, requests)
        _publish(report, options)
    except (OSError, BadTrace, BusError, RunDirError, ServerFailed, ClientFailed) as fault:
        print(f"replay_trace: {fault}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 1 if report.wrong_bytes else 0


def replay(run_dir: RunDir, options: Options, requests: Sequence[TraceRequest]) -> ReplayReport:
    """Replay against the server of a run directory."""
    before = status(run_dir)
    with client_processes(options.clients) as clients, _progress_bar(len(requests)) as progress:
        started_s = clients.start(_jobs(run_dir, options))
        tallies = clients.tallies(
            lambda done: progress.update(progress.task_ids[0], completed=done)
        )
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
    return ReplayReport.of(workload, seconds, tallies, before.counters, after.counters)


def _jobs(run_dir: RunDir, options: Options) -> list[Job]:
    namespace = Namespace(
        model="replay",
        revision=options.run_id or uuid.uuid4().hex,
        dtype="uint8",
        chunk_tokens=options.chunk_tokens,
        shard_bytes=options.chunk_bytes,
    )
    return [
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


@contextlib.contextmanager
def _server(options: Options) -> Iterator[RunDir]:
    if options.starts_server:
        with own_server(options.l1_size or DEFAULT_L1_SIZE) as run_dir:
            yield run_dir
        return
    run_dir = RunDir(options.run_dir) if options.run_dir else default_run_dir(options.server or "")
    wait_until_populated(run_dir)
    yield run_dir


@contextlib.contextmanager
def _progress_bar(requests: int) -> Iterator[Progress]:
    """On a terminal; nothing elsewhere."""
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


def _publish(report: ReplayReport, options: Options) -> None:
    Console().print(report.table())
    print(report.json_line(), flush=True)
    if options.json is not None:
        with open(options.json, "a") as lines:
            lines.write(report.json_line() + "\n")


if __name__ == "__main__":
    sys.exit(main())
