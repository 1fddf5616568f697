"""Kill, stop and pester everything at random times of a seed; see that every promise is kept.

    python -m benchmarks.chaos --minutes 5 --seed 7

Brings its own server. Client processes store, retrieve and verify bytes that follow from their
keys; meanwhile engine, http, supervisor and clients are killed and stopped, caches cleared, and
peers misbehave, on loopback only. It ends by itself, with the engine's own check on a quiet server.
Further servers (--servers) are on their own, each with the next seed.

Exit code 1 if a byte was wrong, a commit lost, or anything leaked or broke; 2 if it could not run.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import subprocess
import sys
import time
from collections.abc import Sequence

import msgspec
from rich.console import Console

import bus
from benchmarks.chaos_account import Account
from benchmarks.chaos_audit import (
    EngineState,
    Growth,
    broken_invariants,
    leaks_when_quiet,
    settled_growth,
)
from benchmarks.chaos_conductor import SERVING_TIMEOUT_S, Conductor
from benchmarks.chaos_crew import Crew
from benchmarks.chaos_plan import plan
from benchmarks.chaos_prompts import WORKING_SET_BYTES
from benchmarks.chaos_report import ChaosReport, totals_line
from benchmarks.chaos_server import ChaosServer, chaos_server, populated
from benchmarks.chaos_watch import Watch
from benchmarks.server import ServerFailed, status
from lmcache_mp.messages import StatusReport
from lmcache_mp.units import Size

DEFAULT_L1_SIZE = Size("192MiB")
WAITING_DEATHS = 5
"""Clients that die at the very beginning, while their stores wait for memory."""
_L1_HELP = f"less than {Size(2 * WORKING_SET_BYTES)} is made to evict (default: {DEFAULT_L1_SIZE})"


def chaos(options: argparse.Namespace) -> ChaosReport:
    """One server's whole run."""
    seconds = options.minutes * 60
    account = Account()
    faults: list[str] = []
    began_s = time.monotonic()
    with chaos_server(options.l1_size) as server:
        with contextlib.ExitStack() as stack:
            crew = Crew(server.run_dir.bus_address, options.seed, account)
            stack.callback(crew.abandon)
            watch = Watch(server.run_dir.bus_address)
            stack.callback(watch.stop)
            conductor = Conductor(server, crew, watch, account)
            stack.callback(conductor.close)
            conductor.starve(WAITING_DEATHS)
            populated(server)
            crew.join(options.clients)
            conductor.run(plan(options.seed, seconds, options.clients), seconds)
            conductor.settle()
            crew.end()
            conductor.audit()
            faults += [*conductor.faults, *crew.faults, *watch.seen.faults]
        leaks, growth = _over_a_death(server, conductor, faults)
        leaks += _over_an_upgrade(server, conductor, faults)
        leaks += [f"left after the stop: {path}" for path in server.leftovers()]
        faults += server.tracebacks()
    evicts = options.l1_size < 2 * WORKING_SET_BYTES
    evicted = sum(watch.seen.evictions.values())
    if evicted and not evicts:
        leaks.append(f"{evicted} chunks were evicted from an L1 with room for all")
    return ChaosReport.of(
        account,
        watch.seen,
        events=conductor.events,
        evicts=evicts,
        engine_back_s=conductor.engine_back_s,
        server_back_s=conductor.server_back_s,
        seed=options.seed,
        seconds=round(time.monotonic() - began_s, 1),
        clients=options.clients,
        l1_bytes=int(options.l1_size),
        growth=growth,
        leaks=leaks,
        faults=faults,
    )


def _over_a_death(
    server: ChaosServer, conductor: Conductor, faults: list[str]
) -> tuple[list[str], Growth]:
    """Leaks of the quiet server, and its engine's growth beside the successor of a kill -9."""
    leaks = leaks_when_quiet(server)
    faults += broken_invariants(server)
    before = status(server.run_dir)
    old = EngineState.settled(server, before.processes["engine"].pid)
    if before.processes["http"].state != "running":
        faults.append(f"http is {before.processes['http'].state}")
    conductor.kill_engine()
    after = _adopted(server, conductor, before, faults)
    leaks += [*old.watched(server), *leaks_when_quiet(server)]
    growth = settled_growth(server, old, after.processes["engine"].pid)
    return leaks + growth.leaks(), growth


def _over_an_upgrade(server: ChaosServer, conductor: Conductor, faults: list[str]) -> list[str]:
    """Leaks of a server that adopts what this one keeps, and that keeps nothing itself."""
    before = status(server.run_dir)
    for keep_l1 in (False, None):
        server.stop()
        if server.exit_code:
            faults.append(f"the server ended with {server.exit_code}")
        if keep_l1 is not None:
            server.start(keep_l1=keep_l1)
            _adopted(server, conductor, before, faults)
            leaks = leaks_when_quiet(server)
    return leaks


def _adopted(
    server: ChaosServer, conductor: Conductor, before: StatusReport, faults: list[str]
) -> StatusReport:
    """The next engine's report, once it serves all that there was."""
    deadline_s = time.monotonic() + SERVING_TIMEOUT_S
    after = before
    while after.epoch == before.epoch:
        if time.monotonic() > deadline_s:
            raise ServerFailed("the engine did not come back on the quiet server")
        time.sleep(0.05)
        with contextlib.suppress(bus.BusError):
            after = status(server.run_dir)
    if after.l1.adopted_chunks != before.l1.ready_chunks:
        faults.append(
            f"{after.l1.adopted_chunks} chunks adopted of {before.l1.ready_chunks}:"
            f" {after.l1.dropped_records}"
        )
    conductor.audit()
    faults += broken_invariants(server)
    return after


def _side_by_side(options: argparse.Namespace) -> list[ChaosReport]:
    """Several servers at once, each with a process that conducts its run."""
    command = [sys.executable, "-m", "benchmarks.chaos", "--minutes", str(options.minutes)]
    command += ["--clients", str(options.clients), "--l1-size", str(options.l1_size)]
    seeds = range(options.seed, options.seed + options.servers)
    runs = [
        subprocess.Popen([*command, "--seed", str(seed)], stdout=subprocess.PIPE) for seed in seeds
    ]
    said = [run.communicate()[0] for run in runs]
    if failed := [run.args for run in runs if run.returncode not in (0, 1)]:
        raise ServerFailed(f"{len(failed)} of {len(runs)} runs could not be ended; see above")
    return [msgspec.json.decode(line, type=ChaosReport) for line in said]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=float, default=1.0, help="how long (default: 1)")
    add("--seed", type=int, default=1, help="what happens when (default: 1)")
    add("--clients", type=int, default=3, help="client processes of each server (default: 3)")
    add("--servers", type=int, default=1, help="servers at once, with seeds from N on (default: 1)")
    add("--l1-size", type=Size, default=DEFAULT_L1_SIZE, help=_L1_HELP)
    options = parser.parse_args(arguments)
    if options.minutes <= 0 or options.clients < 1 or options.servers < 1:
        parser.error("there must be some time, a client and a server")
    logging.getLogger("lmcache_mp").setLevel(logging.CRITICAL)  # what fails open is counted
    try:
        reports = [chaos(options)] if options.servers == 1 else _side_by_side(options)
    except (ServerFailed, bus.BusError, OSError) as fault:
        print(f"chaos: {fault}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if options.servers == 1:
        Console(stderr=True).print(reports[0].table())
    for report in reports:
        print(report.json_line(), flush=True)
    print(totals_line(reports), file=sys.stderr)
    return 0 if all(report.good for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
