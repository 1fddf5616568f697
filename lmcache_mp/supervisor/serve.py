"""`lmcache-mp serve`: a whole server in the foreground."""

from __future__ import annotations

import shlex
import sys

from lmcache_mp import logging, token_file
from lmcache_mp.config import Config
from lmcache_mp.rundir import L1Files
from lmcache_mp.supervisor.child import Child
from lmcache_mp.supervisor.claim import CannotStart, Claim, claim
from lmcache_mp.supervisor.supervisor import Patience, Supervisor
from lmcache_mp.units import format_bytes

log = logging.init_logger(__name__)

# -P: what lies in the current directory is not ours to import.
_PYTHON = (sys.executable, "-P")


def serve(config: Config) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code.

    Raises `CannotStart`, `RunDirError` or `bus.BadAddress`, each a sentence, before anything runs.
    """
    logging.configure(config.log_level, config.log_format, "supervisor")
    check_token_file(config)
    with claim(config) as held:
        log.info(
            "serving name=%s run_dir=%s bus=%s http=%s",
            config.name,
            held.run_dir.path,
            ",".join((held.run_dir.bus_address, *config.bus)),
            held.http_address,
        )
        exit_code = Supervisor(
            engine=engine(held),
            http=http(held),
            worker=lambda name: worker(held, name),
            bus_address=held.run_dir.bus_address,
            patience=Patience(drain_s=config.drain_s),
        ).run()
    _report_leftovers(config)
    log.info("stopped name=%s", config.name)
    return exit_code


def check_token_file(config: Config) -> None:
    """Refuse to start with a token file that would keep everybody out; raises `CannotStart`."""
    if config.http_token_file is None:
        return
    try:
        token_file.read(config.http_token_file)
    except token_file.TokenFileError as fault:
        raise CannotStart(str(fault)) from None


def engine(held: Claim) -> Child:
    """The engine process of a server."""
    command = (
        *_PYTHON,
        *("-X", "faulthandler"),  # SIGABRT logs the stacks, from its first line on
        *("-m", "lmcache_mp.engine", "--run-dir", str(held.run_dir.path)),
    )
    return Child("engine", command, cold_command=(*command, "--cold"), probed=True)


def http(held: Claim) -> Child:
    """The http process of a server; it serves from a socket that outlives it."""
    descriptor = held.http_socket.fileno()
    command = (
        *_PYTHON,
        *("-m", "http_apis", "--run-dir", str(held.run_dir.path), "--fd", str(descriptor)),
    )
    return Child("http", command, pass_fds=(descriptor,), address=held.http_address)


def worker(held: Claim, name: str) -> Child:
    """The process of an L2 adapter."""
    command = (
        *_PYTHON,
        *("-m", "lmcache_mp.worker", "--run-dir", str(held.run_dir.path), "--adapter", name),
    )
    return Child(f"l2.{name}", command)


def purge_command(config: Config) -> str:
    """What to type to free the L1 that a server of this configuration left."""
    words = ["lmcache-mp", "purge", "--name", config.name]
    if config.run_dir is not None:
        words += ["--run-dir", str(config.resolved_run_dir().path)]
    if config.l1_dir != Config().l1_dir:
        words += ["--l1-dir", config.l1_dir]
    return shlex.join(words)


def _report_leftovers(config: Config) -> None:
    segment = L1Files.of(config.l1_dir, config.name).segment
    try:
        occupied = segment.stat().st_blocks * 512
    except OSError:
        return
    log.warning(
        "L1 is left with %s in %s: the next start finds it, `%s` frees it",
        format_bytes(occupied),
        segment,
        purge_command(config),
    )
