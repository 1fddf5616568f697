"""What whole processes cost: the time until they answer, and their memory while idle."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bus
from benchmarks.harness import Figure
from benchmarks.hot_path.effort import Effort
from benchmarks.latency import Latency
from benchmarks.server import own_server, starting_server, status
from lmcache_mp.messages import Heartbeat
from lmcache_mp.rundir import RunDir
from lmcache_mp.units import Size

ASK_AGAIN_S = 0.002
PATIENCE_S = 30.0


def start(effort: Effort) -> Iterator[Figure]:
    """From the start of the process to /healthcheck 200, and to the first answer of the bus."""
    bare_s, healthy_s, bus_s = [], [], []
    for _ in range(effort.starts):
        bare_s.append(_bare_start())
        times = _server_start(effort)
        healthy_s.append(times[0])
        bus_s.append(times[1])
    name = f"start to /healthcheck 200, {Size(effort.started_l1_bytes)} of L1, beside bare FastAPI"
    yield _of_starts(name, "<= 2", bare_s, healthy_s)
    yield _of_starts("start until the bus answers, beside /healthcheck", "<= 1", healthy_s, bus_s)


def memory(effort: Effort) -> Iterator[Figure]:
    """All server processes, idle and without clients, beside one bare FastAPI process."""
    with own_server(Size(effort.started_l1_bytes)) as run_dir:
        time.sleep(effort.settle_s)
        pids = [process.pid for process in status(run_dir).processes.values()]
        ours = sum(map(private_mb, pids))
    with bare_app() as (process, port):
        _until(_healthy, port)
        floor = private_mb(process.pid)
    yield Figure(
        name=f"idle memory, {len(pids)} processes, beside one of bare FastAPI",
        unit="MB PSS",
        floor=round(floor, 1),
        subject=round(ours, 1),
        bar="<= 150 MB",
    )


def private_mb(pid: int) -> float:
    """Proportional set size of a process, without shared memory."""
    kib = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, _ = line.split()
        kib[name.rstrip(":")] = int(value)
    return (kib["Pss"] - kib["Pss_Shmem"]) * 1024 / 1e6


@contextlib.contextmanager
def bare_app() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The floor, from the moment that its process is there, and its port."""
    port = _free_port()
    command = [sys.executable, "-m", "benchmarks.hot_path.bare_app", str(port)]
    with subprocess.Popen(command) as process:
        try:
            yield process, port
        finally:
            process.terminate()


def _bare_start() -> float:
    began_s = time.perf_counter()
    with bare_app() as (_, port):
        _until(_healthy, port)
        return time.perf_counter() - began_s


def _server_start(effort: Effort) -> tuple[float, float]:
    """Seconds until /healthcheck says 200, and until the bus answers."""
    port = _free_port()
    answered_s: list[float] = []

    def watch_bus(run_dir: RunDir) -> None:
        _until(_answers, run_dir.bus_address)
        answered_s.append(time.perf_counter() - began_s)

    began_s = time.perf_counter()
    with starting_server(Size(effort.started_l1_bytes), port) as (run_dir, _):
        watcher = threading.Thread(target=watch_bus, args=(run_dir,))
        watcher.start()
        _until(_healthy, port)
        healthy_s = time.perf_counter() - began_s
        watcher.join()
    return healthy_s, answered_s[0]


def _until(is_so: Callable[[str], bool] | Callable[[int], bool], where: str | int) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_so(where):  # type: ignore[arg-type]
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"nobody answers at {where}")
        time.sleep(ASK_AGAIN_S)


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/healthcheck")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _answers(address: str) -> bool:
    if not os.path.exists(address.removeprefix("ipc://")):
        return False
    try:
        with bus.Client(address) as client:
            client.call(Heartbeat())
    except bus.Unavailable:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _of_starts(name: str, bar: str, floor_s: list[float], subject_s: list[float]) -> Figure:
    return Figure(
        name=name,
        unit="ms, p50",
        floor=round(statistics.median(floor_s) * 1000, 1),
        subject=round(statistics.median(subject_s) * 1000, 1),
        bar=bar,
        floor_latency=Latency.of(floor_s),
        subject_latency=Latency.of(subject_s),
    )
