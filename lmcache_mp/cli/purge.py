"""`lmcache-mp purge`: remove what a stopped server left, and nothing else."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from lmcache_mp.cli.failure import Failure
from lmcache_mp.cli.sources import Resolved
from lmcache_mp.config import Config, ConfigError
from lmcache_mp.liveness import living_clients
from lmcache_mp.rundir import L1Files, RunDir
from lmcache_mp.units import format_bytes


def run(resolved: Resolved) -> int:
    """Free the L1 of a stopped server and tidy its run directory; says what it freed.

    Lock files stay: a server that starts this moment may have one open, and a new file of the same
    name would be a second lock.
    """
    config = resolved.config
    run_dir = config.resolved_run_dir()
    try:
        with _no_server(config.name, run_dir):
            freed = {
                path: _free(L1Files.of(path, config.name)) for path in _l1_dirs(config, run_dir)
            }
            _tidy(run_dir)
    except OSError as fault:
        raise Failure(f"cannot purge {fault.filename or run_dir.path}: {fault.strerror}") from None
    found = {path: occupied for path, occupied in freed.items() if occupied is not None}
    for path, occupied in found.items():
        print(f"freed {format_bytes(occupied)} of L1 in {path}")
    if not found:
        print(f"server {config.name!r} has left no L1 in {' or '.join(freed)}")
    return 0


@contextlib.contextmanager
def _no_server(name: str, run_dir: RunDir) -> Iterator[None]:
    """Hold the locks of a server, so that none runs, nor starts meanwhile."""
    with contextlib.ExitStack() as held:
        for lock in ("supervisor", "engine") if run_dir.path.is_dir() else ():
            holder = run_dir.lock_holder(lock)
            try:
                descriptor = run_dir.lock(lock)
            except BlockingIOError:
                raise Failure(
                    f"server {name!r} runs as pid {holder} in {run_dir.path}: stop it first"
                ) from None
            held.callback(os.close, descriptor)
            held.callback(os.ftruncate, descriptor, 0)
        yield


def _l1_dirs(config: Config, run_dir: RunDir) -> list[str]:
    """Where its L1 may be: where it is said to be, and where a killed server had it."""
    directories = [config.l1_dir]
    with contextlib.suppress(ConfigError):
        saved = Config.load(run_dir)
        if saved.name == config.name:
            directories.append(saved.l1_dir)
    return list(dict.fromkeys(directories))


def _free(files: L1Files) -> int | None:
    """Bytes that were freed; None if there was nothing."""
    if not files.segment.exists() and not files.state.exists():
        return None
    with contextlib.suppress(FileNotFoundError), open(files.state, "rb") as state:
        try:
            fcntl.flock(state, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(
                f"{files.state} is in use by a server of this name with another run directory:"
                " say which with --run-dir, and stop it first"
            ) from None
        return files.unlink()
    return files.unlink()


def _tidy(run_dir: RunDir) -> None:
    for path in (run_dir.path / "bus.sock", run_dir.config_file, run_dir.l2_file):
        path.unlink(missing_ok=True)
    if run_dir.clients.is_dir():
        living_clients(run_dir.clients)  # who lives keeps its file, for the next server
