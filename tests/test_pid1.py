"""The whole server as PID 1, as in a container without an init."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import bus
from lmcache_mp.messages import Status, StatusReport
from lmcache_mp.rundir import L1Files, RunDir
from tests.waiting import wait_until
from tests.world import unique_name

UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def why_not() -> str:
    """Why this machine lets nobody have a PID namespace of his own; empty if it does."""
    try:
        tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, timeout=10)
    except FileNotFoundError:
        return "there is no unshare (util-linux)"
    return tried.stderr.strip() if tried.returncode else ""


@dataclass
class Container:
    """A server that is PID 1 of its namespace."""

    unshare: subprocess.Popen[bytes]
    run_dir: RunDir
    log: Path

    @property
    def init(self) -> psutil.Process:
        """The supervisor, as seen from outside."""
        (init,) = wait_until(psutil.Process(self.unshare.pid).children)
        return init

    def child(self, module: str) -> psutil.Process | None:
        """Its living child that runs this, as seen from outside."""
        for child in self.init.children():
            try:
                if module in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                    return child
            except psutil.NoSuchProcess:
                continue
        return None

    def report(self) -> StatusReport | None:
        try:
            with bus.Client(self.run_dir.bus_address) as client:
                found = client.call(Status())
        except bus.BusError:
            return None
        running = [row for row in found.processes.values() if row.state == "running"]
        return found if len(running) == 3 else None


@pytest.fixture
def container(run_directory: Path) -> Iterator[Container]:
    if reason := why_not():
        pytest.skip(f"needs a PID namespace: {reason}")
    run_dir, log = RunDir(run_directory / "r"), run_directory / "log"
    name = unique_name()
    serve = [sys.executable, "-m", "lmcache_mp", "serve", "--name", name, "--http-port", "0"]
    where = ["--run-dir", str(run_dir.path), "--l1-size", "16MiB", "--drain-s", "1"]
    with log.open("wb") as file:
        unshare = subprocess.Popen([*UNSHARE, *serve, *where], stderr=file)
    inside = Container(unshare, run_dir, log)
    try:
        wait_until(inside.report)
        yield inside
    finally:
        unshare.kill()
        unshare.wait()
        L1Files.of("/dev/shm", name).unlink()


def test_it_is_pid_1_and_sigterm_stops_it_cleanly(container: Container) -> None:
    report = container.report()
    assert report is not None
    assert report.processes["supervisor"].pid == 1
    segment = Path(report.l1.path)
    assert segment.exists()
    container.init.send_signal(signal.SIGTERM)
    assert container.unshare.wait(timeout=15) == 0
    assert not segment.exists()
    assert "told to stop" in container.log.read_text()


@pytest.mark.parametrize("module", ["lmcache_mp.engine", "http_apis"])
def test_what_is_killed_is_started_again(module: str, container: Container) -> None:
    old = container.child(module)
    assert old is not None
    before = container.report()
    assert before is not None
    old.send_signal(signal.SIGKILL)

    def restarted() -> StatusReport | None:
        report = container.report()
        return report if report and sum(p.restarts for p in report.processes.values()) else None

    after = wait_until(restarted)
    assert after is not None
    name = "engine" if module == "lmcache_mp.engine" else "http"
    assert after.processes[name].note == "was killed by SIGKILL"
    assert after.processes["supervisor"].pid == 1
    assert not psutil.pid_exists(old.pid)


def test_orphans_are_reaped(container: Container) -> None:
    enter = ["nsenter", "--target", str(container.init.pid), "--pid", "--mount"]
    subprocess.run([*enter, "sh", "-c", "sleep 600 & sleep 601 &"], check=True, timeout=10)

    def orphans() -> list[psutil.Process]:
        return [child for child in container.init.children() if child.name() == "sleep"]

    mine = wait_until(orphans)
    assert len(mine) == 2
    for orphan in mine:
        os.kill(orphan.pid, signal.SIGKILL)
    wait_until(lambda: not any(psutil.pid_exists(orphan.pid) for orphan in mine))
    assert container.report() is not None
