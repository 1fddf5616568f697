"""Whether somebody holds the lock of a file, for those who only look on."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def is_held(path: Path) -> bool:
    """Whether another open file description has `path` under flock(2).

    A file that is not there, or may not be read, is held by nobody as far as we see. There is no
    flock that only asks, so this takes the shared lock for a few microseconds. Not for a file that
    this process has locked itself.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
