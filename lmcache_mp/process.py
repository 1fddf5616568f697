"""What every process of the server does about its parent, which it does not outlive, and memory.

A parent starts its child from its main thread with `child_environment()`; the child calls
`die_with_parent()` first of all. When the parent ends, however it ends, the child gets a SIGTERM.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

PARENT_PID_VARIABLE = "LMCACHE_MP_PARENT_PID"
NICENESS = 5
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_parent_pid: int | None = None


def child_environment() -> dict[str, str]:
    """This process's environment, and for the child the pid of its parent."""
    return {**os.environ, PARENT_PID_VARIABLE: str(os.getpid())}


def die_with_parent() -> None:
    """Ask the kernel for a SIGTERM at the parent's end; exit at once if that has come already.

    Does nothing in a process that was not started with `child_environment()`. The signal fires
    when the parent's *thread* ends that started this process (prctl(2)).
    """
    expected = os.environ.pop(PARENT_PID_VARIABLE, "")  # not for this process's own children
    if not expected.isdigit():
        return
    global _parent_pid
    _parent_pid = int(expected)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if parent_is_gone():
        sys.exit(0)


def limit_memory(most_bytes: int) -> None:
    """Bound what this process takes for itself. Files mapped shared, as L1, do not count.

    At the bound allocations fail: Python raises `MemoryError`, libzmq aborts the process.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        most_bytes = min(most_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, hard))


def raise_file_limit() -> int:
    """Have as many descriptors as we may, and our children with us; how many those are."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def give_way() -> None:
    """Run at a lower priority than the engine and the inference engines, which go first."""
    os.nice(NICENESS)


def parent_is_gone() -> bool:
    """Whether a SIGTERM is not a wish but the parent's death."""
    return _parent_pid is not None and os.getppid() != _parent_pid
