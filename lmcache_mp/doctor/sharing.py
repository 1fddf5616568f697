"""Who may use the server: the modes of its files, and the way to them for its access group."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from lmcache_mp import access
from lmcache_mp.config import Config, ConfigError
from lmcache_mp.doctor.finding import Finding, advice, ok, problem
from lmcache_mp.rundir import L1Files, RunDir, RunDirError

CHECK = "access"


def sharing(config: Config, run_dir: RunDir) -> Finding:
    """Can the members of the access group use the cache, and can nobody else?"""
    with contextlib.suppress(ConfigError):  # of a server that runs, its own settings
        config = Config.load(run_dir)
    try:
        group = access.group_id(config.access_group)
    except RunDirError as fault:
        return problem(CHECK, f"--access-group {config.access_group}", str(fault))
    wrong = [
        f"{path} has mode {mode:04o}, not {wanted:04o}"
        for path, mode, wanted in _modes(config, run_dir, group)
        if mode != wanted
    ]
    if wrong:
        return problem(
            CHECK, "; ".join(wrong), "restart the server: it sets the modes of its files"
        )
    if group is None:
        return ok(CHECK, f"uid {os.geteuid()} alone")
    members = f"uid {os.geteuid()} and the members of group {config.access_group} ({group})"
    if os.geteuid() and group not in (os.getegid(), *os.getgroups()):
        change = f"make uid {os.geteuid()} a member of {config.access_group}, and log in again"
        return problem(CHECK, f"{members}, to which this user does not belong", change)
    for path in (run_dir.path, Path(config.l1_dir)):
        if (closed := access.closed_to(path, group)) is not None:
            change = f"chmod o+x {closed}, or choose another --run-dir or --l1-dir"
            return advice(CHECK, f"{members}; but {closed} keeps these from {path}", change)
    return ok(CHECK, members)


def _modes(config: Config, run_dir: RunDir, group: int | None) -> Iterator[tuple[Path, int, int]]:
    """`(path, mode, what it should be)` of what is there and can be seen."""
    shared = 0o7777 if group is not None else 0o700
    files = L1Files.of(config.l1_dir, config.name)
    for path, wanted in (
        (run_dir.clients, access.CLIENTS & shared),
        (run_dir.path / "bus.sock", access.SOCKET & shared),
        (files.segment, access.SEGMENT & shared),
        (files.state, 0o600),
        (run_dir.config_file, 0o600),
        (run_dir.path / "supervisor.lock", 0o600),
        (run_dir.path / "engine.lock", 0o600),
    ):
        with contextlib.suppress(OSError):
            yield path, stat.S_IMODE(path.lstat().st_mode), wanted
