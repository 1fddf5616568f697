"""A whole `lmcache-mp serve` under limits, in small file systems, or as another user."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import bus
from lmcache_mp import messages as m
from lmcache_mp.rundir import L1Files, RunDir
from tests.waiting import wait_until
from tests.world import EngineProcess, unique_name

FINDS_US = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
"""The environment for an interpreter that is not ours."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else too")


def as_user(uid: int, *groups: int) -> tuple[str, ...]:
    """What runs a command as that user, who need not be known to the host."""
    several = ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
    return ("setpriv", "--reuid", str(uid), "--regid", str(uid), *several)


def python_of(prefix: Sequence[str]) -> str:
    """An interpreter of our version that such a user may execute: ours may be in root's home."""
    test = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import zmq'], check=True)"
    )
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        if (
            shutil.which(python)
            and not subprocess.run(
                [*prefix, python, "-c", test], env=FINDS_US, capture_output=True
            ).returncode
        ):
            return python
    pytest.skip(f"no Python {version} that another user may execute")


@contextlib.contextmanager
def small_tmpfs(path: Path, options: str) -> Iterator[Path]:
    """A tmpfs of its own at `path`, with mount options such as `size=8m`."""
    path.mkdir(exist_ok=True)
    command = [shutil.which("mount") or "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"may not mount: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def remount(path: Path, options: str) -> None:
    """Change the mount of a small tmpfs."""
    subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)


def fill(path: Path, leave_bytes: int = 0) -> Path:
    """Take all room of a small file system but so much; the file that does."""
    filler = path / "filler"
    found = os.statvfs(path)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - leave_bytes)
    return filler


class Serving:
    """One server, started as `prefix` says; what it logs is in `log`."""

    def __init__(
        self,
        run_dir: Path,
        *flags: str,
        prefix: Sequence[str] = (),
        l1_dir: str = "/dev/shm",
        l1_size: str | None = "16MiB",
    ) -> None:
        self.name = unique_name()
        self.run_dir = RunDir(run_dir)
        self.l1_files = L1Files.of(l1_dir, self.name)
        words = ["--name", self.name, "--run-dir", str(run_dir), "--l1-dir", l1_dir]
        words += ["--http-port", "0", "--drain-s", "1", *flags]
        words += [] if l1_size is None else ["--l1-size", l1_size]
        self._environment = FINDS_US if prefix else None
        python = python_of(prefix) if prefix else sys.executable
        self._command = [*prefix, python, "-m", "lmcache_mp", "serve", *words]
        self._log: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None

    def run(self) -> subprocess.CompletedProcess[str]:
        """Run it to its end, for one that will not start."""
        return subprocess.run(
            self._command, env=self._environment, capture_output=True, text=True, timeout=60
        )

    def start(self) -> Serving:
        """Start it, and wait until all of L1 is there, or it is known that it will not be."""
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stderr=log
            )
        wait_until(self._is_ready, timeout_s=20)
        return self

    @property
    def log_path(self) -> Path:
        return Path("/tmp") / f"{self.name}.log"

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def status(self) -> m.StatusReport:
        with bus.Client(self.run_dir.bus_address) as client:
            return client.call(m.Status())

    def check(self) -> list[str]:
        with bus.Client(self.run_dir.bus_address) as client:
            return client.call(m.Check()).faults

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)

    def end(self) -> None:
        """Nothing of it survives the test, whatever happened."""
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.l1_files.unlink()
        self.log_path.unlink(missing_ok=True)

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log
        try:
            l1 = self.status().l1
        except bus.BusError:
            return False
        return bool(l1.populate_error) or l1.populated_bytes == l1.capacity_bytes


@contextlib.contextmanager
def serving(
    run_dir: Path,
    *flags: str,
    prefix: Sequence[str] = (),
    l1_dir: str = "/dev/shm",
    l1_size: str | None = "16MiB",
) -> Iterator[Serving]:
    """A running server."""
    server = Serving(run_dir, *flags, prefix=prefix, l1_dir=l1_dir, l1_size=l1_size)
    try:
        yield server.start()
    finally:
        server.end()


def epoch_of(server: Serving | EngineProcess) -> int:
    try:
        return server.status().epoch
    except bus.BusError:
        return 0
