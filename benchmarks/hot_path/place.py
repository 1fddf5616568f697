"""Where round trips are measured: a server and a raw echo server, and who runs on which core."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.echo import serving
from benchmarks.harness import on_cpus, pin
from benchmarks.server import own_server, status
from lmcache_mp.client import CacheClient, Namespace
from lmcache_mp.rundir import RunDir
from lmcache_mp.units import Size

POPULATOR = "lmcache-mp populate"


@dataclass(frozen=True, slots=True)
class Place:
    """A populated server with a raw echo server beside it."""

    run_dir: RunDir
    raw: str
    pids: tuple[int, int]
    """Engine and raw server."""

    def cores(self) -> Iterator[str]:
        """Both ends on one core, then on two; to be looped over."""
        cpus = sorted(os.sched_getaffinity(0))
        for where, theirs in (("one core", cpus[:1]), ("two cores", second_cpu(cpus))):
            for pid in self.pids:
                pin(pid, theirs)
            with on_cpus(cpus[:1]):
                yield where
        for pid in self.pids:
            pin(pid, cpus)


def second_cpu(cpus: Sequence[int]) -> Sequence[int]:
    """Where the other end runs, if there is such a place."""
    return cpus[1:2] or cpus


@contextlib.contextmanager
def place(l1_size: Size) -> Iterator[Place]:
    """Both servers, for a while."""
    with tempfile.TemporaryDirectory(prefix="raw-") as directory, own_server(l1_size) as run_dir:
        raw = f"ipc://{directory}/raw.sock"
        with serving("raw", raw) as raw_pid:
            yield Place(run_dir, raw, (engine_pid(run_dir), raw_pid))


def engine_pid(run_dir: RunDir) -> int:
    """The process that answers."""
    return status(run_dir).processes["engine"].pid


@contextlib.contextmanager
def connected(run_dir: RunDir, namespace: Namespace) -> Iterator[CacheClient]:
    """A client whose mapping is populated, that raises where the server fails."""
    with CacheClient.connect(
        run_dir.bus_address, namespace, fail_open=False, timeout_s=30, who="bench"
    ) as cache:
        while any(thread.name == POPULATOR for thread in threading.enumerate()):
            time.sleep(0.01)
        yield cache
