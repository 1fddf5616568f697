"""What a server takes before it starts its processes: its name, its port, its run directory.

All refusals are said here, as sentences, while nothing has been started yet.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lmcache_mp.access import closed_to, group_id
from lmcache_mp.config import Config
from lmcache_mp.logging import init_logger
from lmcache_mp.process import raise_file_limit
from lmcache_mp.rundir import RunDir

log = init_logger(__name__)

HTTP_BACKLOG = 1024
"""Connections that wait while the http process restarts."""
PREDECESSOR_S = 5.0
"""How long the processes of a killed server may take to notice, beyond their drain."""


class CannotStart(Exception):
    """The server cannot be started as asked; the sentence says why and what to do."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one running server holds."""

    run_dir: RunDir
    http_socket: socket.socket

    @property
    def http_address(self) -> str:
        """URL of the HTTP socket, with the port that it got."""
        host, port = self.http_socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def claim(config: Config) -> Iterator[Claim]:
    """Hold all that a server of this configuration needs; raises `CannotStart` or `RunDirError`."""
    run_dir = config.resolved_run_dir()
    _ = run_dir.bus_address  # too long for a socket?
    for directory in config.http_api_dir:
        if not os.path.isdir(directory):
            raise CannotStart(f"--http-api-dir {directory}: there is no such directory")
    group = group_id(config.access_group)
    run_dir.create(group)
    if group is not None:
        _warn_if_out_of_reach(config, run_dir, group)
    raise_file_limit()
    previous = run_dir.lock_holder("supervisor")
    try:
        lock = run_dir.lock("supervisor")
    except BlockingIOError:
        raise CannotStart(
            f"server {config.name!r} runs already, as pid {previous} in {run_dir.path}:"
            " stop it, or choose another --name"
        ) from None
    try:
        was_killed = previous.isdigit()  # else it would have taken its number out
        _await_engine_of_predecessor(run_dir, config.drain_s + PREDECESSOR_S)
        patience_s = PREDECESSOR_S if was_killed else 0.0
        with _listen(config.http_host, config.http_port, patience_s) as http_socket:
            with contextlib.suppress(OSError):  # of a server that was killed
                run_dir.l2_file.unlink(missing_ok=True)
            _save(config, run_dir)
            yield Claim(run_dir, http_socket)
        with contextlib.suppress(OSError):  # a file system that has become read-only
            run_dir.config_file.unlink(missing_ok=True)
            run_dir.l2_file.unlink(missing_ok=True)
    finally:
        os.ftruncate(lock, 0)
        os.close(lock)


def _save(config: Config, run_dir: RunDir) -> None:
    try:
        config.save(run_dir)
    except OSError as fault:
        raise CannotStart(
            f"{run_dir.config_file} cannot be written: {fault.strerror}: make room there, or choose"
            " another directory with --run-dir"
        ) from None


def _warn_if_out_of_reach(config: Config, run_dir: RunDir, group: int) -> None:
    for path in (run_dir.path, Path(config.l1_dir)):
        if (closed := closed_to(path, group)) is not None:
            log.warning(
                "members of group %s cannot reach %s: the mode of %s keeps them out",
                config.access_group,
                path,
                closed,
            )


def _await_engine_of_predecessor(run_dir: RunDir, patience_s: float) -> None:
    """After its supervisor was killed an engine drains before it lets go of L1 and the bus."""

    def lock_is_free() -> bool:
        try:
            lock = run_dir.lock("engine")
        except BlockingIOError:
            return False
        os.ftruncate(lock, 0)  # this process is no engine
        os.close(lock)
        return True

    if not _becomes_true(lock_is_free, patience_s, "the engine of a killed server to end"):
        raise CannotStart(
            f"an engine that no supervisor watches holds {run_dir.path}:"
            f" stop pid {run_dir.lock_holder('engine')}"
        )


def _listen(host: str, port: int, patience_s: float) -> socket.socket:
    """A listening socket; `patience_s` for a killed server's http process to give its port back."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as fault:
        raise CannotStart(
            f"--http-host {host} is no address of this host: {fault.strerror}"
        ) from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def port_is_free() -> bool:
        try:
            listener.bind(address)
            listener.listen(HTTP_BACKLOG)
        except OSError as fault:
            if fault.errno == errno.EADDRINUSE:
                return False
            raise
        return True

    try:
        if _becomes_true(port_is_free, patience_s, f"a killed server to leave port {port}"):
            return listener
        why = f"port {port} on {host} is in use: choose another with --http-port"
    except OSError as fault:
        why = f"cannot listen on port {port} of {host}: {fault.strerror}"
    listener.close()
    raise CannotStart(why)


def _becomes_true(condition: Callable[[], bool], patience_s: float, what: str) -> bool:
    deadline_s = time.monotonic() + patience_s
    if condition():
        return True
    if patience_s:
        log.info("waiting up to %.0f s for %s", patience_s, what)
    while time.monotonic() < deadline_s:
        time.sleep(0.05)
        if condition():
            return True
    return False
