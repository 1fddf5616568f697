"""The run directory: where a server's processes and its clients meet.

    <run-dir>/bus.sock         the bus
    <run-dir>/config.json      the settings this server runs with, for its own processes
    <run-dir>/supervisor.lock  held while a server of this name runs; engine.lock likewise
    <run-dir>/clients/<hex>    one file per client, locked while it lives

Everything is 0700/0600: who can open a path here may use the cache. With an access group its
members may enter the directory, open the socket and L1, and make their files in clients/, but not
list them: nobody can pass for a client whose name they do not know. All else stays closed to them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from bus import validate_address
from lmcache_mp import access
from lmcache_mp.access import RunDirError as RunDirError  # which all here raises

UNSAFE_FILESYSTEMS = ("nfs", "nfs4", "9p", "fuse.sshfs", "cifs")  # their locks do not prove a life


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths of one server's run directory."""

    path: Path

    @property
    def bus_address(self) -> str:
        """Address of the bus; raises `bus.BadAddress` if the path is too long for a socket."""
        return validate_address(f"ipc://{self.path}/bus.sock")

    @property
    def clients(self) -> Path:
        """Directory of the clients' lock files."""
        return self.path / "clients"

    @property
    def config_file(self) -> Path:
        """The resolved settings as JSON."""
        return self.path / "config.json"

    @property
    def l2_file(self) -> Path:
        """Which L2 adapters there are, as JSON; see `lmcache_mp.tiering.roster`."""
        return self.path / "l2.json"

    def create(self, group: int | None = None) -> None:
        """Make the directory, or check that an existing one is ours; open it to `group` alone.

        Raises `RunDirError`. A mode that an operator chose is left, where it does no harm.
        """
        try:
            with access.closed_umask():
                self.check()
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.check()
                self.clients.mkdir(mode=0o700, exist_ok=True)
            mode = stat.S_IMODE(self.path.stat().st_mode)
            if mode == access.RUN_DIR or (group is not None and not mode & stat.S_IXOTH):
                access.share(self.path, group, access.RUN_DIR)
            access.share(self.clients, group, access.CLIENTS)
            self.try_writing()
        except OSError as fault:
            raise RunDirError(
                f"run directory {self.path} cannot be used: {fault.strerror}: choose another with"
                " --run-dir"
            ) from None

    def check(self) -> None:
        """See that nobody else could change what is there, or what will be. Makes nothing.

        Raises `RunDirError`, or `OSError` if it cannot be seen.
        """
        access.check_way(self.path)
        if not self.path.exists():
            return
        access.check_ours(self.path, self.path.stat())
        mode = stat.S_IMODE(self.path.stat().st_mode)
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise RunDirError(
                f"run directory {self.path} has mode {mode:04o}, others may write to it: chmod 0700"
                f" {self.path}"
            )
        with contextlib.suppress(FileNotFoundError):
            access.check_ours(self.clients, self.clients.lstat())
        if (filesystem := filesystem_of(self.path)) in UNSAFE_FILESYSTEMS:
            raise RunDirError(
                f"run directory {self.path} is on {filesystem}, whose locks do not prove that a"
                " client lives: choose a local directory with --run-dir"
            )

    def try_writing(self) -> None:
        """Make and remove a file; raises `OSError`."""
        probe = self.path / ".writable"
        probe.touch(mode=0o600)
        probe.unlink()

    def lock(self, name: str) -> int:
        """Take `<run-dir>/<name>.lock` for this process; the descriptor holds it.

        Raises `BlockingIOError` if another process has it, `RunDirError` if it cannot be taken.
        """
        path = self.path / f"{name}.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as fault:
            raise RunDirError(
                f"{path} cannot be opened: {fault.strerror}: make that possible, or choose another"
                " directory with --run-dir"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(OSError):  # a full disk: the lock counts, not who has it
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def lock_holder(self, name: str) -> str:
        """The pid that wrote itself into a lock file, or what is known of it."""
        try:
            return (self.path / f"{name}.lock").read_text().strip() or "unknown"
        except OSError:
            return "unknown"


@dataclass(frozen=True, slots=True)
class L1Files:
    """The two files of a server's L1; flat names, so that /dev/shm shows whose they are."""

    segment: Path
    state: Path

    @classmethod
    def of(cls, l1_dir: str, name: str) -> L1Files:
        """The files of the server called `name`."""
        return cls(
            Path(l1_dir) / f"lmcache-mp.{name}.l1", Path(l1_dir) / f"lmcache-mp.{name}.state"
        )

    def unlink(self) -> int:
        """Remove both; returns the bytes that the segment's file occupied."""
        occupied = 0
        for path in (self.state, self.segment):  # without its state a segment is adopted by nobody
            try:
                occupied = path.stat().st_blocks * 512
                path.unlink()
            except FileNotFoundError:
                occupied = 0
        return occupied


def default_run_dir(name: str) -> RunDir:
    """Where a server called `name` lives unless told otherwise: never where others may write."""
    uid = os.geteuid()
    candidates = [os.environ.get("XDG_RUNTIME_DIR"), f"/run/user/{uid}"]
    if uid == 0:
        candidates.append("/var/lib")
    else:
        candidates.append(os.path.expanduser("~/.local/state"))
    for base in candidates:
        if base and os.path.isabs(base) and (os.path.isdir(base) or base == candidates[-1]):
            return RunDir(Path(base) / "lmcache-mp" / name)
    raise RunDirError("no default run directory: name one with --run-dir")


def server_address(name: str = "default") -> str:
    """Bus address of the server of that name in its default run directory."""
    return default_run_dir(name).bus_address


def filesystem_of(path: Path) -> str:
    """Type of the filesystem that holds an existing path, as /proc/self/mountinfo calls it."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo") as mounts:
        for line in mounts:
            fields = line.split()
            if fields[2] == wanted:
                return fields[fields.index("-") + 1]
    return "unknown"


def boot_id() -> str:
    """This boot's id: what was in memory before is gone."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
