"""Real servers for tests."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bus
from lmcache_mp import messages as m
from lmcache_mp.client import CacheClient, Namespace
from lmcache_mp.config import Config
from lmcache_mp.l1.geometry import Geometry
from lmcache_mp.rundir import L1Files, RunDir
from lmcache_mp.units import Size
from tests.waiting import wait_until

NAMESPACE = Namespace(model="test", dtype="u8", chunk_tokens=4, shard_bytes=65536)


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A fresh directory whose path leaves room for a Unix socket's."""
    path = Path(tempfile.mkdtemp(prefix="kv-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def unique_name() -> str:
    """A server name that tells the leak guard which files are this test process's."""
    return f"t{os.getpid()}.{uuid.uuid4().hex[:8]}"


class EngineProcess:
    """One `python -m lmcache_mp.engine`, which may be killed and started again."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._directory = tempfile.mkdtemp(prefix="kv-", dir="/tmp")
        self.run_dir = RunDir(Path(self._directory) / "r")
        self.run_dir.create()
        self._settings = {"name": unique_name(), "l1_size": "16MiB", **settings}
        self.process: subprocess.Popen[bytes] | None = None
        self.reconfigure()

    def reconfigure(self, **settings: Any) -> None:
        """Change what the next start reads."""
        self._settings |= settings
        size = self._settings["l1_size"]
        sized = {**self._settings, "l1_size": None if size is None else Size(size)}
        self.config = Config(run_dir=str(self.run_dir.path), **sized)
        self.config.save(self.run_dir)

    @property
    def address(self) -> str:
        return self.run_dir.bus_address

    @property
    def l1_files(self) -> L1Files:
        return L1Files.of(self.config.l1_dir, self.config.name)

    def start(self, *flags: str, populated: bool = True) -> None:
        """Start it, and wait until it answers and, unless told otherwise, L1 is populated."""
        command = [sys.executable, "-m", "lmcache_mp.engine", "--run-dir", str(self.run_dir.path)]
        self.process = subprocess.Popen([*command, *flags])
        wait_until(self._answers)
        if populated:
            wait_until(lambda: self.status().l1.populated_bytes == self.config.l1_size)

    def call(self, request: bus.Request[Any]) -> Any:
        """One call over a connection of its own."""
        with bus.Client(self.address) as client:
            return client.call(request)

    def status(self) -> m.StatusReport:
        report: m.StatusReport = self.call(m.Status())
        return report

    def client(self, namespace: Namespace = NAMESPACE, **options: Any) -> CacheClient:
        return CacheClient.connect(
            self.address, namespace, **{"fail_open": False, "timeout_s": 10, **options}
        )

    def open_header(self) -> Geometry:
        """What the state file says of L1."""
        with (
            open(self.l1_files.state, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping,
            memoryview(mapping) as buffer,
        ):
            return Geometry.from_header(buffer)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(timeout=10)

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.signal(signal.SIGTERM)
        assert self.process is not None
        return self.process.wait(timeout=20)

    def finish(self) -> None:
        """End it; if it still runs its invariants must hold."""
        try:
            if self.process is not None and self.process.poll() is None:
                report: m.CheckReport = self.call(m.Check())
                assert report.faults == []
                assert self.stop() == 0
        finally:
            if self.process is not None and self.process.poll() is None:
                self.kill()
            self.l1_files.unlink()
            shutil.rmtree(self._directory, ignore_errors=True)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the engine ended with {self.process.returncode}"
        try:
            self.status()
        except bus.Unavailable:
            return False
        return True
