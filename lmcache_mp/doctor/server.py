"""A server that runs: does it answer, is it as old as this command, is it well?"""

from __future__ import annotations

import bus
from lmcache_mp import __version__, flock
from lmcache_mp.doctor.finding import Finding, advice, ok, problem
from lmcache_mp.messages import Status, StatusReport
from lmcache_mp.rundir import RunDir

ANSWER_S = 2.0
CHECK = "server"


def server(name: str, run_dir: RunDir) -> tuple[Finding, StatusReport | None]:
    """What is to be said of it, and its report if it runs and answers."""
    try:
        with bus.Client(run_dir.bus_address) as client:
            report = client.call(Status(), ANSWER_S)
    except (bus.Unavailable, bus.DeadlineExceeded, bus.BadAddress) as fault:
        if not flock.is_held(run_dir.path / "supervisor.lock"):
            return ok(CHECK, f"no server {name!r} runs"), None
        found = f"pid {run_dir.lock_holder('supervisor')} runs, but does not answer: {fault}"
        return problem(CHECK, found, "look into its log"), None
    except bus.BusError as fault:
        change = "restart it with this version, or use the command of its own"
        return problem(
            CHECK, f"it does not understand lmcache-mp {__version__}: {fault}", change
        ), None
    return health(report, __version__), report


def health(report: StatusReport, version: str) -> Finding:
    """Of a server that answers, as a command of `version` sees it."""
    found = f"{report.server!r} {report.version} is {report.state}"
    if report.l1.populate_error:
        found += f", but L1 did not become as large as asked for: {report.l1.populate_error}"
        return problem(CHECK, found, "make room in its L1 directory, or lower --l1-size")
    if report.version != version:
        change = f"restart it with --keep-l1, with version {version}"
        return advice(CHECK, f"{found}; this command is {version}", change)
    restarted = {name: p for name, p in report.processes.items() if p.restarts}
    if restarted:
        found += "".join(
            f", {name} was started again {p.restarts} times: {p.note}"
            for name, p in restarted.items()
        )
        return advice(CHECK, found, "look into its log for what happened before")
    return ok(CHECK, found)
