"""The server under test: one of its own for the time of a measurement, or one that runs already."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import bus
from lmcache_mp.messages import Status, StatusReport
from lmcache_mp.rundir import RunDir
from lmcache_mp.units import Size

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


class ServerFailed(Exception):
    """The server did not start, or did not stop well."""


@contextlib.contextmanager
def own_server(l1_size: Size, *, adopts: bool = False, l2: Sequence[str] = ()) -> Iterator[RunDir]:
    """A server in a run directory of its own, populated; nothing of it is left behind.

    `adopts`: what an engine left that was killed. `l2`: its adapters, as JSON.
    """
    with starting_server(l1_size, adopts=adopts, l2=l2) as (run_dir, process):
        wait_until_populated(run_dir, process)
        yield run_dir


@contextlib.contextmanager
def starting_server(
    l1_size: Size, http_port: int = 0, *, adopts: bool = False, l2: Sequence[str] = ()
) -> Iterator[tuple[RunDir, subprocess.Popen[bytes]]]:
    """The same from the moment that its process is there; port 0 is any free one."""
    name = f"bench-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory(prefix="kv-") as directory:
        run_dir = RunDir(Path(directory) / "run")
        where = ["--name", name, "--run-dir", str(run_dir.path)]
        options = ["--l1-size", str(l1_size), "--http-port", str(http_port)]
        if not adopts:
            options.append("--no-keep-l1")
        for adapter in l2:
            options += ["--l2", adapter]
        process = subprocess.Popen(_lmcache_mp("serve", *where, *options, "--log-level", "warning"))
        try:
            yield run_dir, process
        finally:
            code = _stop(process)
            if code:
                subprocess.run(_lmcache_mp("purge", *where), check=False)
        if code:
            raise ServerFailed(f"the server ended with exit code {code}; see its log above")


def status(run_dir: RunDir) -> StatusReport:
    """What the server says of itself; raises `bus.BusError` if it does not answer."""
    with bus.Client(run_dir.bus_address) as client:
        return client.call(Status())


def wait_until_answers(run_dir: RunDir, started: subprocess.Popen[bytes]) -> None:
    """Return as soon as a server just started says anything on the bus."""
    socket = run_dir.path / "bus.sock"
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        if socket.exists():
            with contextlib.suppress(bus.Unavailable):
                status(run_dir)
                return
        if started.poll() is not None or time.monotonic() > deadline_s:
            raise ServerFailed("the server did not start; see its log above")
        time.sleep(0.002)


def wait_until_populated(run_dir: RunDir, started: subprocess.Popen[bytes] | None = None) -> None:
    """Return when all of L1 is backed by memory: first touches are not what is measured.

    A server just `started` may take its time until it answers, another one must do so at once.
    """
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            l1 = status(run_dir).l1
        except bus.Unavailable:
            if started is None:
                raise
            if started.poll() is not None:
                raise ServerFailed("the server did not start; see its log above") from None
            why = "does not answer"
        else:
            if l1.populated_bytes >= l1.capacity_bytes or l1.populate_error:
                return
            why = f"has populated {l1.populated_bytes} of {l1.capacity_bytes} bytes"
        if time.monotonic() > deadline_s:
            raise ServerFailed(f"the server {why} after {START_TIMEOUT_S:g} s")
        time.sleep(0.02)


def _lmcache_mp(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lmcache_mp", *arguments]


def _stop(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    try:
        return process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
