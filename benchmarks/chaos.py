"""Kill, stop and pester everything at random times of a seed; see that every promise is kept.

    python -m benchmarks.chaos --minutes 5 --seed 7

Brings its own server. Client processes store, retrieve and verify bytes that follow from their
keys; meanwhile engine, http and clients are killed and stopped, caches cleared, and peers
misbehave, on loopback only. It ends by itself, with the engine's own check on a quiet server.

Exit code 1 if a byte was wrong, a commit lost, or anything leaked or broke; 2 if it could not run.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import time
from collections.abc import Sequence

from rich.console import Console

import bus
from benchmarks.chaos_account import Account
from benchmarks.chaos_audit import broken_invariants, grown_descriptors, leaks_when_quiet
from benchmarks.chaos_conductor import SERVING_TIMEOUT_S, Conductor
from benchmarks.chaos_crew import Crew
from benchmarks.chaos_plan import plan
from benchmarks.chaos_prompts import WORKING_SET_BYTES
from benchmarks.chaos_report import ChaosReport
from benchmarks.chaos_server import ChaosServer, chaos_server
from benchmarks.chaos_watch import Watch
from benchmarks.server import ServerFailed, status
from lmcache_mp.units import Size

DEFAULT_L1_SIZE = Size("192MiB")
_L1_HELP = f"less than {Size(2 * WORKING_SET_BYTES)} is made to evict (default: {DEFAULT_L1_SIZE})"


def chaos(options: argparse.Namespace) -> ChaosReport:
    """The whole run."""
    seconds = options.minutes * 60
    account = Account()
    faults: list[str] = []
    began_s = time.monotonic()
    with chaos_server(options.l1_size) as server:
        with contextlib.ExitStack() as stack:
            crew = Crew(server.run_dir.bus_address, options.clients, options.seed, account)
            stack.callback(crew.abandon)
            watch = Watch(server.run_dir.bus_address)
            stack.callback(watch.stop)
            conductor = Conductor(server, crew, watch, account)
            stack.callback(conductor.close)
            conductor.run(plan(options.seed, seconds, options.clients), seconds)
            conductor.settle()
            crew.end()
            conductor.audit()
            faults += [*conductor.faults, *crew.faults, *watch.seen.faults]
        leaks, broken = _quiet(server, conductor)
        faults += broken
        server.stop()
        if server.exit_code:
            faults.append(f"the server ended with {server.exit_code}")
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
        seed=options.seed,
        seconds=round(time.monotonic() - began_s, 1),
        clients=options.clients,
        l1_bytes=int(options.l1_size),
        leaks=leaks,
        faults=faults,
    )


def _quiet(server: ChaosServer, conductor: Conductor) -> tuple[list[str], list[str]]:
    """Leaks and faults of the quiet server, and of the successor that adopts what it leaves."""
    leaks = leaks_when_quiet(server)
    faults = broken_invariants(server)
    report = status(server.run_dir)
    old = server.descriptors(report.processes["engine"].pid)
    if report.processes["http"].state != "running":
        faults.append(f"http is {report.processes['http'].state}")
    conductor.kill_engine()
    deadline_s = time.monotonic() + SERVING_TIMEOUT_S
    successor = report
    while successor.epoch == report.epoch:
        if time.monotonic() > deadline_s:
            return leaks, [*faults, "the engine did not come back on the quiet server"]
        time.sleep(0.05)
        with contextlib.suppress(bus.BusError):
            successor = status(server.run_dir)
    if successor.l1.adopted_chunks != report.l1.ready_chunks:
        faults.append(
            f"{successor.l1.adopted_chunks} chunks adopted of {report.l1.ready_chunks}:"
            f" {successor.l1.dropped_records}"
        )
    conductor.audit()
    leaks += leaks_when_quiet(server)
    faults += broken_invariants(server)
    new = server.descriptors(successor.processes["engine"].pid)
    return leaks + grown_descriptors(server, old, new), faults


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
    add("--clients", type=int, default=3, help="client processes (default: 3)")
    add("--l1-size", type=Size, default=DEFAULT_L1_SIZE, help=_L1_HELP)
    options = parser.parse_args(arguments)
    if options.minutes <= 0 or options.clients < 1:
        parser.error("there must be some time, and a client")
    logging.getLogger("lmcache_mp").setLevel(logging.CRITICAL)  # what fails open is counted
    try:
        report = chaos(options)
    except (ServerFailed, bus.BusError, OSError) as fault:
        print(f"chaos: {fault}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    Console(stderr=True).print(report.table())
    print(report.json_line(), flush=True)
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
