"""An adapter's process: `python -m lmcache_mp.worker --run-dir DIR --adapter NAME`.

Exit codes: 0 after a clean stop; 3 if the adapter held an object longer than its deadline, for the
thread that is in it can only be ended with the process; 4 if a thread ended by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import bus
from lmcache_mp import logging as log_setup
from lmcache_mp import process
from lmcache_mp.client.deadline import Deadline
from lmcache_mp.client.session import Session
from lmcache_mp.config import Config, ConfigError
from lmcache_mp.errors import NoSuchAdapter
from lmcache_mp.l2 import AnyAdapter
from lmcache_mp.rundir import RunDir
from lmcache_mp.tiering import roster
from lmcache_mp.tiering.messages import Lane, WorkerReport
from lmcache_mp.tiering.spec import AdapterSpec, BadAdapter
from lmcache_mp.worker.health import Health
from lmcache_mp.worker.lane import LaneThread
from lmcache_mp.worker.objects import Objects

log = log_setup.init_logger("lmcache_mp.worker")

EXIT_HANGS = 3
EXIT_CRIPPLED = 4
EXIT_MISCONFIGURED = 2
LOOK_EVERY_S = 0.2
REPORT_EVERY_S = 1.0
REPORT_TIMEOUT_S = 5.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 15.0
WELL_AFTER_S = 10.0
"""Used that long, an adapter has left its earlier failures behind."""
STOP_S = 3.0
"""How long threads may finish the object in hand at a stop."""


def main() -> None:
    """Run the worker of one adapter until told to stop."""
    process.die_with_parent()
    parser = argparse.ArgumentParser(prog="lmcache_mp.worker")
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--adapter", required=True)
    options = parser.parse_args()
    run_dir = RunDir(Path(options.run_dir))
    try:
        config = Config.load(run_dir)
        log_setup.configure(config.log_level, config.log_format, f"l2.{options.adapter}")
        spec = (roster.load(run_dir) or {})[options.adapter]
    except (ConfigError, BadAdapter) as fault:
        log.error("%s", fault)
        sys.exit(EXIT_MISCONFIGURED)
    except KeyError:
        log.info("there is no adapter %s any more", options.adapter)
        return
    process.give_way()
    worker = Worker(options.adapter, spec, run_dir)
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    signal.signal(signal.SIGINT, lambda *_: worker.stop())
    worker.run()
    os._exit(0)  # its threads wait in the engine's socket; what they hold ends with the process


class Worker:
    """The main thread: opens the adapter, reports, probes, and ends what hangs."""

    def __init__(self, name: str, spec: AdapterSpec, run_dir: RunDir) -> None:
        self._name = name
        self._spec = spec
        self._health = Health()
        self._session = Session(run_dir.bus_address, None, f"l2 {name}")
        self._adapter: AnyAdapter | None = None
        self._threads: list[LaneThread] = []
        self._stopping = threading.Event()
        self._reported = (False, "")
        self._report_at_s = 0.0
        self._try_at_s = 0.0
        self._trying_since_s: float | None = None
        self._used_since_s: float | None = None
        """Since when the adapter is used, if it is."""
        self._pause_s = FIRST_PAUSE_S

    def stop(self) -> None:
        """End `run` soon."""
        self._stopping.set()

    def run(self) -> None:
        """Until stopped, or not wanted any more."""
        while not self._stopping.is_set():
            now_s = time.monotonic()
            if self._used_since_s is not None and not self._health.usable.is_set():
                self._rest()
            if not self._health.usable.is_set() and now_s >= self._try_at_s:
                self._start_try(now_s)
            self._report(now_s)
            self._end_if_hanging(now_s)
            self._health.log.look(now_s)
            if any(thread.not_wanted for thread in self._threads):
                break
            self._end_if_crippled()
            self._stopping.wait(LOOK_EVERY_S)
        self._end()

    def _start_try(self, now_s: float) -> None:
        """Try in a thread of its own, for it may hang."""
        if self._trying_since_s is None:
            self._trying_since_s = now_s
            threading.Thread(target=self._try, name=f"try {self._name}", daemon=True).start()

    def _try(self) -> None:
        """Open the adapter, or ask it something: whether it can be used (again)."""
        try:
            if self._adapter is None:
                self._adapter = self._spec.open()
                self._start_threads(self._adapter)
                log.info("adapter opened type=%s", self._spec.common.type)
            else:
                self._adapter.lookup((os.urandom(32),))
        except Exception as fault:  # whatever an adapter raises, it cannot be used
            self._health.leave_alone(fault)
            self._rest()
        else:
            self._used_since_s = time.monotonic()
            self._health.use()
        finally:
            self._trying_since_s = None

    def _rest(self) -> None:
        """Leave the adapter alone for a while, for longer if it has not been well in between."""
        now_s = time.monotonic()
        if self._used_since_s is not None and now_s - self._used_since_s > WELL_AFTER_S:
            self._pause_s = FIRST_PAUSE_S
        self._used_since_s = None
        pause_s = self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311  # a fleet spreads out
        self._try_at_s = now_s + pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _start_threads(self, adapter: AnyAdapter) -> None:
        common = self._spec.common
        lanes = [Lane.ASK] + [Lane.LOAD] * common.load_threads + [Lane.STORE] * common.store_threads
        for lane in lanes:
            objects = Objects(adapter, self._health, common.retries)
            thread = LaneThread(self._name, lane, self._session, objects, self._health)
            thread.start()
            self._threads.append(thread)  # in this order: the main thread ends if one is not alive

    def _report(self, now_s: float) -> None:
        state = (self._health.usable.is_set(), self._health.error)
        if self._health.untried or (state == self._reported and now_s < self._report_at_s):
            return
        self._report_at_s = now_s + REPORT_EVERY_S
        try:
            link = self._session.link(Deadline(REPORT_TIMEOUT_S))
            if link.mapping is None and not self._session.refused:
                raise bus.Unavailable("L1 is not mapped")
            report = WorkerReport(
                adapter=self._name,
                pid=os.getpid(),
                open=state[0],
                error=state[1][:4000],
                figures=self._figures(),
            )
            link.client.call(report, REPORT_TIMEOUT_S)
            self._reported = state
        except NoSuchAdapter:
            self._stopping.set()
        except bus.BusError as fault:
            log.debug("no report: %s", fault)
            self._session.lose_link()
            self._reported = (False, "")

    def _figures(self) -> dict[str, int | float]:
        figures: dict[str, int | float] = {"failed_tries": self._health.failed_tries}
        for thread in self._threads:
            for name, value in asdict(thread.objects.figures).items():
                figures[name] = figures.get(name, 0) + value
        if self._adapter is not None:
            with contextlib.suppress(Exception):  # numbers of a third party's are not worth more
                figures |= self._adapter.figures()
        return figures

    def _end_if_hanging(self, now_s: float) -> None:
        limit_s = self._spec.common.deadline_s
        busy = {thread.name: thread.busy_since_s for thread in self._threads}
        for name, since_s in {**busy, "the attempt to use it": self._trying_since_s}.items():
            if since_s is not None and now_s - since_s > limit_s:
                log.error("%s takes more than %g s: ending this process", name, limit_s)
                os._exit(EXIT_HANGS)

    def _end_if_crippled(self) -> None:
        """A thread that met what nobody expected is gone, with what it had taken."""
        for thread in self._threads:
            if not thread.is_alive():
                log.error("%s has ended: ending this process, to be started again", thread.name)
                os._exit(EXIT_CRIPPLED)

    def _end(self) -> None:
        for thread in self._threads:
            thread.stop()
        deadline_s = time.monotonic() + STOP_S
        while self._busy() and time.monotonic() < deadline_s:
            time.sleep(0.01)
        if self._adapter is not None and not self._busy():
            with contextlib.suppress(Exception):
                self._adapter.close()

    def _busy(self) -> bool:
        return any(thread.busy_since_s is not None for thread in self._threads)


if __name__ == "__main__":
    main()
