"""The server under test: one of its own for the time of a measurement, or one that runs already."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import bus
from lmcache_mp.messages import Status, StatusReport
from lmcache_mp.rundir import RunDir

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0


class ServerFailed(Exception):
    """The server did not start, or did not stop well; the sentence ends with its log."""


@contextlib.contextmanager
def own_server(l1_size: str) -> Iterator[RunDir]:
    """A server in a run directory of its own, on a free port; nothing of it is left behind."""
    name = f"bench-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory(prefix="kv-") as directory:
        run_dir = RunDir(Path(directory) / "run")
        log = Path(directory) / "log"
        flags = ["--name", name, "--run-dir", str(run_dir.path)]
        command = [sys.executable, "-m", "lmcache_mp", "serve", *flags, "--l1-size", l1_size]
        command += ["--no-keep-l1", "--http-port", "0", "--log-level", "warning"]
        with open(log, "wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            wait_until_populated(run_dir, lambda: process.poll() is None)
            yield run_dir
            if (code := _stop(process)) != 0:
                raise ServerFailed(f"the server ended with exit code {code}")
        except (bus.BusError, ServerFailed) as fault:
            raise ServerFailed(f"{fault}\n{log.read_text()}".strip()) from None
        finally:
            if process.poll() is None and _stop(process) == -signal.SIGKILL:
                purge = [sys.executable, "-m", "lmcache_mp", "purge", *flags]
                subprocess.run(purge, check=False)


def status(run_dir: RunDir) -> StatusReport:
    """What the server says of itself; raises `bus.BusError` if it does not answer."""
    with bus.Client(run_dir.bus_address) as client:
        return client.call(Status())


def wait_until_populated(run_dir: RunDir, alive: Callable[[], bool]) -> None:
    """Return when the server answers and all of its L1 is backed by memory."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        why = "the server does not answer"
        with contextlib.suppress(bus.Unavailable):
            l1 = status(run_dir).l1
            if l1.populated_bytes >= l1.capacity_bytes or l1.populate_error:
                return
            why = f"{l1.populated_bytes} of {l1.capacity_bytes} bytes of L1 are populated"
        if not alive():
            raise ServerFailed("the server has ended")
        if time.monotonic() > deadline_s:
            raise ServerFailed(f"{why} after {START_TIMEOUT_S:g} s")
        time.sleep(0.02)


def _stop(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
