"""All checks, applied to this machine and one configuration."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from lmcache_mp.config import Config
from lmcache_mp.doctor import limits, memory, places, versions
from lmcache_mp.doctor.finding import Finding
from lmcache_mp.doctor.server import server
from lmcache_mp.doctor.sharing import sharing
from lmcache_mp.l1.room import default_l1_bytes
from lmcache_mp.messages import StatusReport
from lmcache_mp.rundir import L1Files

SHMEM_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


def examine(config: Config) -> Iterator[Finding]:
    """Every check of a server of this configuration, run or to be run. Raises `RunDirError`."""
    run_dir = config.resolved_run_dir()
    standing, report = server(config.name, run_dir)
    yield standing
    yield places.run_directory(run_dir)
    yield sharing(config, run_dir)
    yield from _memory(config)
    yield from _limits(config)
    yield from _ports(config, report)
    directory = Path(config.l1_dir)
    if directory.is_dir():
        yield places.leftovers(directory, config.name)
    yield versions.python()
    yield versions.libzmq(versions.installed_libzmq())
    yield from versions.packages()


def _memory(config: Config) -> Iterator[Finding]:
    directory = Path(config.l1_dir)
    yield memory.l1_directory(directory)
    if directory.is_dir():
        wanted = None if config.l1_size is None else int(config.l1_size)
        yield memory.l1_room(directory, wanted, _own_bytes(config))
        shmem_enabled = ""
        with contextlib.suppress(OSError):  # a kernel without huge pages
            shmem_enabled = SHMEM_ENABLED.read_text()
        yield memory.huge_pages(directory, shmem_enabled)
    yield memory.kernel(os.uname().release)


def _limits(config: Config) -> Iterator[Finding]:
    yield limits.open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    size = config.l1_size
    with contextlib.suppress(OSError):  # no such directory: said elsewhere
        l1_bytes = int(size) if size is not None else default_l1_bytes(Path(config.l1_dir))
        yield limits.locked_memory(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], l1_bytes)


def _ports(config: Config, report: StatusReport | None) -> Iterator[Finding]:
    """Those of a server that runs are its own."""
    if report is not None:
        return
    yield places.port("http port", "--http-port", config.http_host, config.http_port)
    for address in config.bus:
        if address.startswith("tcp://"):
            host, _, number = address.removeprefix("tcp://").rpartition(":")
            yield places.port(f"bus {address}", "--bus", host.strip("[]"), int(number))


def _own_bytes(config: Config) -> int:
    try:
        return L1Files.of(config.l1_dir, config.name).segment.stat().st_blocks * 512
    except OSError:
        return 0
