"""The engine process: `python -m lmcache_mp.engine --run-dir DIR [--cold]`.

Exit codes: 0 after a clean stop, 2 if it cannot run as configured (a restart would not help).
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import signal
import subprocess
import sys
import time
from pathlib import Path

from bus import BadAddress, Server
from lmcache_mp import logging as log_setup
from lmcache_mp import messages, process
from lmcache_mp.access import group_id
from lmcache_mp.config import Config, ConfigError
from lmcache_mp.engine.clients import Clients
from lmcache_mp.engine.l2 import L2
from lmcache_mp.engine.report import Facts
from lmcache_mp.engine.service import Service
from lmcache_mp.engine.start import adopted_or_new
from lmcache_mp.key_files import KeyDirectory
from lmcache_mp.l1.segment import L1Unusable
from lmcache_mp.rundir import RunDir, RunDirError
from lmcache_mp.tiering import messages as l2_messages
from lmcache_mp.tiering.spec import BadAdapter
from lmcache_mp.units import Size

log = log_setup.init_logger("lmcache_mp.engine")

EXIT_MISCONFIGURED = 2


def main() -> None:
    """Run one engine until it is told to stop."""
    faulthandler.enable()
    process.die_with_parent()
    gc.disable()  # nothing here makes cycles, and adopting a million slots takes half the time
    parser = argparse.ArgumentParser(prog="lmcache_mp.engine")
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--cold", action="store_true", help="do not adopt what is left of L1")
    options = parser.parse_args()
    run_dir = RunDir(Path(options.run_dir))
    try:
        config = Config.load(run_dir)
        log_setup.configure(config.log_level, config.log_format, "engine")
        process.limit_memory(int(config.engine_memory))
        engine = Engine(run_dir, config, cold=options.cold)
    except (ConfigError, RunDirError, L1Unusable, BadAddress, BadAdapter) as fault:
        log.error("%s", fault)
        sys.exit(EXIT_MISCONFIGURED)
    engine.run()


class Engine:
    """Everything one engine process has: locks, files, L1, the bus server and its handlers."""

    def __init__(self, run_dir: RunDir, config: Config, *, cold: bool) -> None:
        self._config = config
        self._drain_until_s = 0.0
        keys = (
            KeyDirectory(Path(config.bus_keys).expanduser()).server_curve()
            if config.bus_keys
            else None
        )
        self._lock = _only_engine(run_dir)
        self._store, l1, living, facts = adopted_or_new(run_dir, config, cold=cold)
        epoch = max(l1.state.epoch + 1, int(time.time() * 1000))  # never one that was before
        l1.state.epoch = epoch
        self._server = Server(
            (*messages.ALL, *l2_messages.ALL),
            epoch=epoch,
            max_message_bytes=int(config.bus_max_message),
            queue_messages=config.bus_queue_messages,
        )
        clients = Clients(l1, run_dir, self._server.is_connected, config.max_connections)
        clients.watch(living)
        self._l2 = L2(self._server, l1, clients, run_dir, config)
        self._service = Service(self._server, l1, self._l2, clients, config, facts)
        self._server.every(0.05, self._look_after_stop)
        self._server.every(0.2, self._look_after_helper)
        group = group_id(config.access_group)
        for address in (run_dir.bus_address, *config.bus):
            curve = keys if address.startswith("tcp://") else None
            facts.addresses.append(self._server.bind(address, curve=curve, group=group))
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
        gc.freeze()
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

    def _on_signal(self, number: int, frame: object) -> None:
        """SIGTERM: drain, however often it comes. SIGINT: stop now."""
        if number == signal.SIGINT:
            self._server.stop()
        elif not self._drain_until_s:
            self._drain_until_s = time.monotonic() + self._config.drain_s

    def _look_after_stop(self, now_s: float) -> None:
        if self._drain_until_s:
            self._service.start_draining()
            busy = self._service.open_leases() or self._l2.tiers.storing
            if now_s >= self._drain_until_s or not busy:
                self._server.stop()

    def _start_helper(self, facts: Facts) -> subprocess.Popen[bytes] | None:
        """Have L1 populated, where that is not done yet."""
        if facts.populated_bytes >= facts.capacity_bytes:
            return None
        command = [
            *(sys.executable, "-P", "-m", "lmcache_mp.l1.populate"),
            *("--bus", facts.addresses[0]),
            *("--segment", facts.path),
            *("--l1-id", self._store.state.geometry.l1_id.hex()),
            *("--start", str(facts.populated_bytes)),
            *("--log-level", self._config.log_level),
            *("--log-format", self._config.log_format),
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


if __name__ == "__main__":
    main()
