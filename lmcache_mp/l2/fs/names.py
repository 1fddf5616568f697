"""Names below an adapter's directory.

ab/ab12..                       an object: the hex of its key, below that of its first byte
ab/.ab12...<writer>-<number>    one that is being written, or was when its writer died
"""

from __future__ import annotations

import itertools
import os
import re

from lmcache_mp.rundir import boot_id

KEY_BYTES = 32
FAN_OUT = tuple(f"{first:02x}" for first in range(256))
"""The directories, each for one first byte of a key."""

_ASIDE = re.compile(r"\.[0-9a-f]{64}\.([0-9a-f-]+)-(\d+)-(\d+)-\d+")
_numbers = itertools.count()  # of the whole process: several adapters may write to one directory


def object_path(key: bytes) -> str:
    """Where the object of a key is."""
    name = key.hex()
    return f"{name[:2]}/{name}"


def key_of(name: str, first: int) -> bytes | None:
    """The key of an object's file in that directory; None for what is not ours."""
    if len(name) != 2 * KEY_BYTES or not name.startswith(FAN_OUT[first]):
        return None
    try:
        key = bytes.fromhex(name)
    except ValueError:
        return None
    return key if key.hex() == name else None  # fromhex takes capitals and blanks too


class Writer:
    """This process, as its unfinished files name it."""

    __slots__ = ("_host", "_identity")

    def __init__(self) -> None:
        # A pid means something only where it was given: in this boot, in this pid namespace.
        self._host = f"{boot_id()[:13]}-{os.stat('/proc/self/ns/pid').st_ino:x}"
        self._identity = f"{self._host}-{os.getpid()}-{_started(os.getpid())}"

    def aside(self, path: str) -> str:
        """A new name beside an object's, to write it under."""
        fan_out, _, name = path.partition("/")
        return f"{fan_out}/.{name}.{self._identity}-{next(_numbers)}"

    def lives(self, name: str) -> bool | None:
        """Whether the writer of an unfinished file lives; None: nobody here can tell."""
        match = _ASIDE.fullmatch(name)
        if match is None or match[1] != self._host:
            return None
        return _started(int(match[2])) == int(match[3])


def is_aside(name: str) -> bool:
    """Whether it is an unfinished file of any writer."""
    return _ASIDE.fullmatch(name) is not None


def _started(pid: int) -> int | None:
    """When the process was started, in ticks since boot; None if there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[19])  # proc(5): field 22
    except (FileNotFoundError, ProcessLookupError):
        return None
