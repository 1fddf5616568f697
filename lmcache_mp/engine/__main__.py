"""The engine process: `python -m lmcache_mp.engine --run-dir DIR [--cold]`.

Exit codes: 0 after a clean stop, 2 if it cannot run as configured (a restart would not help).
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from bus import Call, Server
from lmcache_mp import logging as log_setup
from lmcache_mp import messages, process
from lmcache_mp.config import Config, ConfigError
from lmcache_mp.engine.clients import Clients
from lmcache_mp.engine.report import Facts
from lmcache_mp.engine.service import Service
from lmcache_mp.l1.adopt import adopt
from lmcache_mp.l1.room import default_l1_bytes
from lmcache_mp.l1.segment import L1Store, L1Unusable, open_store
from lmcache_mp.l1.tier import L1
from lmcache_mp.liveness import sweep
from lmcache_mp.rundir import L1Files, RunDir, RunDirError
from lmcache_mp.units import Size

log = log_setup.init_logger("lmcache_mp.engine")

EXIT_MISCONFIGURED = 2


def main() -> None:
    """Run one engine until it is told to stop."""
    faulthandler.enable()
    process.die_with_parent()
    parser = argparse.ArgumentParser(prog="lmcache_mp.engine")
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--cold", action="store_true", help="do not adopt what is left of L1")
    options = parser.parse_args()
    run_dir = RunDir(Path(options.run_dir))
    try:
        config = Config.load(run_dir)
        log_setup.configure(config.log_level, config.log_format, "engine")
        engine = Engine(run_dir, config, cold=options.cold)
    except (ConfigError, RunDirError, L1Unusable) as fault:
        log.error("%s", fault)
        sys.exit(EXIT_MISCONFIGURED)
    engine.run()


class Engine:
    """Everything one engine process has: locks, files, L1, the bus server and its handlers."""

    def __init__(self, run_dir: RunDir, config: Config, *, cold: bool) -> None:
        self._config = config
        self._drain_until_s = 0.0
        self._lock = _only_engine(run_dir)
        self._store = _open_l1(config, cold)
        state = self._store.state
        l1 = L1(state, policy=config.eviction_policy)
        clients = Clients(l1, run_dir)
        epoch = max(state.epoch + 1, int(time.time() * 1000))  # never one that was before
        self._server = Server(messages.ALL, epoch=epoch, on_undeliverable=self._undeliverable)
        facts = Facts(
            path=str(self._store.files.segment),
            capacity_bytes=state.geometry.l1_bytes,
            populated_bytes=state.populated_bytes,
            run_dir=str(run_dir.path),
            addresses=[],
        )
        self._adopt(l1, clients, facts)
        state.epoch = epoch
        sweep(run_dir.clients)
        self._service = Service(self._server, l1, clients, config, facts)
        self._server.every(0.05, self._look_after_stop)
        self._server.every(0.2, self._look_after_helper)
        for address in (run_dir.bus_address, *config.bus):
            facts.addresses.append(self._server.bind(address))
        self._helper = self._start_helper(facts)
        log.info(
            "engine ready epoch=%d l1=%s policy=%s bus=%s",
            epoch,
            Size(facts.capacity_bytes),
            config.eviction_policy,
            ",".join(facts.addresses),
        )

    def run(self) -> None:
        """Serve until a stop has been asked for and the leases are back, then clean up."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        gc.collect()
        gc.freeze()
        gc.disable()  # nothing here makes cycles; walking a million slots would take 0.1 s
        try:
            self._server.run()
        finally:
            self._stop_helper()
            self._server.close()
        orphaned = self._config.keep_l1 is None and process.parent_is_gone()
        if self._config.keep_l1 or orphaned:  # without a supervisor this is a crash
            log.info("engine stopped, l1 kept")
        else:
            log.info("engine stopped, l1 freed bytes=%d", self._store.files.unlink())

    def _adopt(self, l1: L1, clients: Clients, facts: Facts) -> None:
        if not self._store.adoptable:
            if self._store.cold_reason:
                log.info("starting with an empty l1: %s", self._store.cold_reason)
            return
        started_s = time.monotonic()
        dropped = adopt(l1, clients.restore, started_s)
        facts.adopted_chunks = sum(len(e.ready) for e in l1.namespaces.entries.values())
        facts.dropped_records = dict(dropped)
        log.info(
            "adopted l1 chunks=%d leases=%d dropped=%s seconds=%.3f",
            facts.adopted_chunks,
            sum(len(owner.leases) for owner in l1.ledger.owners.values()),
            dict(dropped),
            time.monotonic() - started_s,
        )

    def _undeliverable(self, call: Call) -> None:
        self._service.undeliverable(call)

    def _on_signal(self, number: int, frame: object) -> None:
        """SIGTERM: drain, however often it comes. SIGINT: stop now."""
        if number == signal.SIGINT:
            self._server.stop()
        elif not self._drain_until_s:
            self._drain_until_s = time.monotonic() + self._config.drain_s

    def _look_after_stop(self, now_s: float) -> None:
        if self._drain_until_s:
            self._service.start_draining()
            if now_s >= self._drain_until_s or not self._service.open_leases():
                self._server.stop()

    def _start_helper(self, facts: Facts) -> subprocess.Popen[bytes] | None:
        """Have L1 populated, where that is not done yet."""
        if facts.populated_bytes >= facts.capacity_bytes:
            return None
        geometry = self._store.state.geometry
        command = [
            *(sys.executable, "-P", "-m", "lmcache_mp.l1.populate"),
            *("--bus", facts.addresses[0]),
            *("--segment", facts.path),
            *("--l1-id", geometry.l1_id.hex()),
            *("--start", str(facts.populated_bytes)),
        ]
        return subprocess.Popen(command, env=process.child_environment(), stdin=subprocess.DEVNULL)

    def _look_after_helper(self, now_s: float) -> None:
        if self._helper is None or self._helper.poll() is None:
            return
        if self._helper.returncode != 0:
            self._service.population_failed(
                f"the helper process ended with {self._helper.returncode}; its error is in the log"
            )
        self._helper = None

    def _stop_helper(self) -> None:
        if self._helper is not None:
            self._helper.kill()
            self._helper.wait()


def _only_engine(run_dir: RunDir) -> int:
    """The lock that only one engine of a run directory has: binding would not tell."""
    try:
        return run_dir.lock("engine")
    except BlockingIOError:
        holder = run_dir.lock_holder("engine")
        raise RunDirError(
            f"another engine (pid {holder}) serves {run_dir.path}: stop it, or choose another name"
        ) from None


def _open_l1(config: Config, cold: bool) -> L1Store:
    files = L1Files.of(config.l1_dir, config.name)
    adoptable = config.keep_l1 is not False and not cold
    if config.l1_size is not None:
        return open_store(files, int(config.l1_size), adopt=adoptable)
    if adoptable:
        with contextlib.suppress(OSError):  # what is there has been sized before
            return open_store(files, os.stat(files.segment).st_size, adopt=True)
    try:
        size = default_l1_bytes(files.segment.parent)
    except OSError as fault:
        raise L1Unusable(
            f"L1 directory {config.l1_dir}: {fault.strerror}: choose another with --l1-dir"
        ) from None
    log.info("l1 is half of what is free in %s: %s", config.l1_dir, Size(size))
    return open_store(files, size, adopt=adoptable)


if __name__ == "__main__":
    main()
