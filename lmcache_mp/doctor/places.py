"""What a server takes besides memory: a run directory, ports; and what dead ones left."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

from bus import BadAddress
from lmcache_mp import flock
from lmcache_mp.doctor.finding import Finding, advice, ok, problem
from lmcache_mp.rundir import UNSAFE_FILESYSTEMS, L1Files, RunDir, RunDirError, filesystem_of
from lmcache_mp.units import format_bytes


def run_directory(run_dir: RunDir) -> Finding:
    """Can it be used; if it is not there yet, can it be made?"""
    check = "run directory"
    try:
        _ = run_dir.bus_address  # too long for a socket?
        run_dir.check()
        if run_dir.path.is_dir():
            run_dir.try_writing()
            return ok(check, f"{run_dir.path} on {filesystem_of(run_dir.path)}")
        parent = next(path for path in run_dir.path.parents if path.exists())
    except (BadAddress, RunDirError) as fault:
        return problem(check, str(run_dir.path), str(fault))
    except OSError as fault:
        return problem(check, f"{run_dir.path}: {fault.strerror}", "choose another --run-dir")
    filesystem = filesystem_of(parent)
    found = f"{run_dir.path} will be made, on {filesystem}"
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        change = f"let uid {os.geteuid()} write to {parent}, or choose another --run-dir"
        return problem(check, f"{run_dir.path} cannot be made in {parent}", change)
    if filesystem in UNSAFE_FILESYSTEMS:
        return problem(check, found, "locks there prove no life: choose a local --run-dir")
    return ok(check, found)


def port(check: str, flag: str, host: str, number: int) -> Finding:
    """Can a server listen there?"""
    if number == 0:
        return ok(check, f"any free one on {host}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as fault:
        return problem(check, f"{host}: {fault.strerror}", "choose an address of this host")
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as fault:
            in_use = fault.errno == errno.EADDRINUSE
            why = "in use" if in_use else str(fault.strerror)
            return problem(check, f"{number} on {host} is {why}", f"choose another with {flag}")
    return ok(check, f"{number} on {host} is free")


def leftovers(directory: Path, own_name: str) -> Finding:
    """L1 of servers that run no more: memory that nobody uses until it is purged or adopted."""
    check = "leftovers"
    left = sorted(_left(directory))
    if not left:
        return ok(check, f"none in {directory}")
    found = ", ".join(f"{format_bytes(occupied)} of {name!r}" for name, occupied in left)
    commands = []
    for name, _ in left:
        words = ["lmcache-mp", "purge", "--name", name]
        if directory != Path("/dev/shm"):  # noqa: S108
            words += ["--l1-dir", str(directory)]
        commands.append(shlex.join(words))
    change = "; ".join(commands)
    if own_name in (name for name, _ in left):
        change += f" (or let the next start of {own_name!r} adopt its own)"
    return advice(check, found, change)


def _left(directory: Path) -> Iterator[tuple[str, int]]:
    """`(server, bytes)` of every L1 here whose state file nobody has locked."""
    for state in directory.glob("lmcache-mp.*.state"):
        name = state.name.removeprefix("lmcache-mp.").removesuffix(".state")
        if not os.access(state, os.R_OK) or flock.is_held(state):  # another user's, or in use
            continue
        with contextlib.suppress(FileNotFoundError):  # purged this moment
            segment = L1Files.of(str(directory), name).segment
            yield name, (segment if segment.exists() else state).stat().st_blocks * 512
