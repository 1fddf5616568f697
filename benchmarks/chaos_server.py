"""The server of a chaos run: its processes, to be killed, and what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.server import STOP_TIMEOUT_S, ServerFailed, wait_until_populated
from lmcache_mp.config import Config
from lmcache_mp.rundir import L1Files, RunDir
from lmcache_mp.units import Size

ENGINE, HTTP = "lmcache_mp.engine", "http_apis"


@dataclass(slots=True)
class ChaosServer:
    """A running `lmcache-mp serve`, in a directory of its own."""

    name: str
    run_dir: RunDir
    process: subprocess.Popen[bytes]
    log: Path
    exit_code: int | None = None

    def pid_of(self, module: str) -> int | None:
        """The supervisor's child that runs this module, if there is one now."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.Error):
                    if module in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                        return child.pid
        return None

    def signal(self, pid: int, number: signal.Signals) -> bool:
        """Send a signal to one of its processes; whether that was there to get it."""
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def descriptors(self, pid: int) -> list[str]:
        """What one of its processes has open."""
        found = []
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(os.readlink(entry))
        return found

    def stop(self) -> None:
        """SIGTERM, and wait."""
        if self.exit_code is None:
            self.process.terminate()
            try:
                self.exit_code = self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.exit_code = self.process.wait()

    def leftovers(self) -> list[str]:
        """Files that should have gone with it."""
        files = L1Files.of(Config().l1_dir, self.name)
        left = [path for path in (files.segment, files.state) if path.exists()]
        return [str(path) for path in (*left, *self.run_dir.clients.iterdir())]

    def tracebacks(self) -> list[str]:
        """What its processes did not expect, out of their log."""
        head = "Traceback (most recent call last)"
        parts = self.log.read_text(errors="replace").split(head)[1:]
        return [head + part[:1500] for part in parts]


@contextlib.contextmanager
def chaos_server(l1_size: Size) -> Iterator[ChaosServer]:
    """A server that adopts what a killed engine left; populated, and gone on leaving."""
    name = f"chaos-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory(prefix="kv-") as directory:
        run_dir, log = RunDir(Path(directory) / "run"), Path(directory) / "log"
        where = ["--name", name, "--run-dir", str(run_dir.path)]
        options = ["--l1-size", str(l1_size), "--http-port", "0", "--drain-s", "1"]
        command = [sys.executable, "-m", "lmcache_mp"]
        with open(log, "wb") as file:
            process = subprocess.Popen([*command, "serve", *where, *options], stderr=file)
        server = ChaosServer(name, run_dir, process, log)
        try:
            wait_until_populated(run_dir, process)
            yield server
        except ServerFailed:
            sys.stderr.write(log.read_text(errors="replace"))
            raise
        finally:
            server.stop()
            if server.exit_code or server.leftovers():
                subprocess.run([*command, "purge", *where], check=False)
