"""The server of a chaos run: its processes, to be killed, and what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.server import (
    START_TIMEOUT_S,
    STOP_TIMEOUT_S,
    ServerFailed,
    wait_until_answers,
    wait_until_populated,
)
from lmcache_mp.config import Config
from lmcache_mp.rundir import L1Files, RunDir
from lmcache_mp.units import Size

ENGINE, HTTP, POPULATOR = "lmcache_mp.engine", "http_apis", "lmcache_mp.l1.populate"


@dataclass(slots=True)
class ChaosServer:
    """A `lmcache-mp serve` in a directory of its own, one after the other."""

    name: str
    run_dir: RunDir
    l1_size: Size
    log: Path
    tcp: str = field(default_factory=lambda: f"tcp://127.0.0.1:{_free_port()}")
    """Its bus for peers that share no run directory."""
    process: subprocess.Popen[bytes] = field(init=False)
    exit_code: int | None = None

    @property
    def where(self) -> list[str]:
        """The flags that say which server is meant."""
        return ["--name", self.name, "--run-dir", str(self.run_dir.path)]

    def start(self, *, keep_l1: bool = True) -> None:
        """Start it, perhaps again: it adopts what its predecessor left."""
        command = [sys.executable, "-m", "lmcache_mp", "serve", *self.where]
        command += ["--l1-size", str(self.l1_size), "--http-port", "0", "--drain-s", "1"]
        command += ["--bus", self.tcp, "--bus-insecure-loopback"]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*command, *(["--keep-l1"] if keep_l1 else [])], stderr=log
            )
        self.exit_code = None

    def starve(self) -> int | None:
        """Stop the process that populates L1 before it begins; its pid, if that was in time."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            engine = self.pid_of(ENGINE)
            populator = None if engine is None else self.pid_of(POPULATOR, engine)
            if populator is not None and self.signal(populator, signal.SIGSTOP):
                wait_until_answers(self.run_dir, self.process)
                return populator
            time.sleep(0.002)
        return None

    def pid_of(self, module: str, parent: int | None = None) -> int | None:
        """The child of the supervisor, or of `parent`, that runs this module now."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(parent or self.process.pid).children():
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
    """A server that keeps its L1, just started; it is gone on leaving, and its L1 with it."""
    name = f"chaos-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory(prefix="kv-") as directory:
        server = ChaosServer(
            name, RunDir(Path(directory) / "run"), l1_size, Path(directory) / "log"
        )
        server.start()
        try:
            yield server
        except ServerFailed:
            sys.stderr.write(server.log.read_text(errors="replace"))
            raise
        finally:
            server.stop()
            if server.exit_code or server.leftovers():
                command = [sys.executable, "-m", "lmcache_mp", "purge", *server.where]
                subprocess.run(command, check=False)


def populated(server: ChaosServer) -> None:
    """Return when all of its L1 is backed by memory."""
    wait_until_populated(server.run_dir, server.process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
