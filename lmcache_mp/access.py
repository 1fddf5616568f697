"""Who may use a server's files: its own user, and the members of its access group if it has one.

Root may do everything, of course. Members are trusted with the bytes of the cache; not with the
life of the server or of each other.
"""

from __future__ import annotations

import contextlib
import grp
import os
import stat
from collections.abc import Iterator
from pathlib import Path

RUN_DIR = 0o750
CLIENTS = 0o3730
"""setgid: the server may read a client's file; sticky: only its client may remove it. Members may
not list it: to pass for a client one must know the name of its file."""
SOCKET = SEGMENT = 0o660
"""Modes with an access group; without one only the owner's bits are on. No other file is shared."""


class RunDirError(Exception):
    """The run directory cannot be used; the sentence says why and what to do."""


def group_id(name: str | None) -> int | None:
    """The number of the access group, if there is one; raises `RunDirError` if it is unknown."""
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise RunDirError(
            f"there is no group {name!r} on this host: make it with groupadd, or choose another"
            " with --access-group"
        ) from None


def share(path: Path, group: int | None, mode: int) -> None:
    """Give a path of ours that mode for the members of `group`; for us alone if that is None."""
    if group is None:
        path.chmod(mode & 0o700)
        return
    try:
        os.chown(path, -1, group)  # before its members may do anything
    except OSError as fault:
        raise RunDirError(
            f"{path} cannot be given to the access group (gid {group}): {fault.strerror}: uid"
            f" {os.geteuid()} must be a member of it, or choose another with --access-group"
        ) from None
    path.chmod(mode)


def closed_to(path: Path, group: int) -> Path | None:
    """The first directory on the way to `path` that keeps members of the group out, by its mode."""
    for parent in reversed(path.resolve().parents):
        found = parent.stat()
        for_group = found.st_gid == group and found.st_mode & stat.S_IXGRP
        if not for_group and not found.st_mode & stat.S_IXOTH:
            return parent
    return None


def why_no_access(address: str) -> str:
    """What keeps this user from a bus socket that is there; empty if nothing does, or it is not."""
    if not address.startswith("ipc://"):
        return ""
    path = address.removeprefix("ipc://")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        try:
            found = os.stat(path)
        except PermissionError:
            return f"uid {os.geteuid()} may not look into {os.path.dirname(path)}: {_AS_MEMBER}"
        if not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
            return f"uid {os.geteuid()} may not open the socket of uid {found.st_uid}: {_AS_MEMBER}"
    return ""


_AS_MEMBER = "run as that server's user, or as a member of its --access-group"


def check_way(path: Path) -> None:
    """See that nobody can put another directory in the place of `path`; raises `RunDirError`."""
    for step in dict.fromkeys((path, *path.parents, *path.resolve().parents)):
        try:
            found = step.lstat()
        except FileNotFoundError:
            continue
        if stat.S_ISLNK(found.st_mode):
            if found.st_uid not in (0, os.geteuid()):
                raise RunDirError(
                    f"run directory {path} goes through {step}, a symbolic link of uid"
                    f" {found.st_uid}, who may point it elsewhere: choose another with --run-dir"
                )
        elif step != path and found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
            raise RunDirError(
                f"run directory {path} is in {step}, where everybody may put another in its place"
                f" (mode {stat.S_IMODE(found.st_mode):04o}): chmod o-w {step}, or choose another"
                " with --run-dir"
            )


def check_ours(path: Path, found: os.stat_result) -> None:
    """See that it is a directory of this user; raises `RunDirError`."""
    if not stat.S_ISDIR(found.st_mode):
        raise RunDirError(f"{path} is no directory: remove it, or choose another with --run-dir")
    if found.st_uid != os.geteuid():
        raise RunDirError(
            f"run directory {path} belongs to uid {found.st_uid}, this is uid {os.geteuid()}:"
            " choose another with --run-dir"
        )


@contextlib.contextmanager
def closed_umask() -> Iterator[None]:
    """What is made on the way is nobody else's to write to."""
    previous = os.umask(0o022)
    os.umask(previous | 0o022)
    try:
        yield
    finally:
        os.umask(previous)
