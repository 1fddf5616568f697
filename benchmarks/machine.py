"""Where and with what a figure was measured: it stands beside every figure."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import msgspec
import zmq

import lmcache_mp

_ROOT = Path(__file__).resolve().parent.parent


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine."""

    cpu: str
    cores: int
    """That this process may run on."""
    memory_gib: float
    kernel: str


class Circumstances(msgspec.Struct, frozen=True, kw_only=True):
    """Machine, versions and revision."""

    machine: Machine
    versions: dict[str, str]
    revision: str

    @classmethod
    def here(cls) -> Circumstances:
        """Those of this process."""
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(
            machine=Machine(
                cpu=_cpu(),
                cores=len(os.sched_getaffinity(0)),
                memory_gib=round(memory_bytes / 2**30, 1),
                kernel=platform.release(),
            ),
            versions={
                "lmcache-mp": lmcache_mp.__version__,
                "python": platform.python_version(),
                "pyzmq": zmq.__version__,
                "libzmq": zmq.zmq_version(),
                "msgspec": msgspec.__version__,
            },
            revision=_revision(),
        )


def _cpu() -> str:
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                return value.strip()
    return platform.machine()


def _revision() -> str:
    """The commit of the checkout, with a plus if something is not committed."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_ROOT), *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return output.stdout.decode().strip()
