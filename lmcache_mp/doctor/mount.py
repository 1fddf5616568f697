"""The mount that a directory is on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mount:
    """As /proc/self/mountinfo tells (proc_pid_mountinfo(5))."""

    point: str
    filesystem: str
    size_bytes: int
    options: dict[str, str]
    """Of the mount and of the filesystem; those without a value have an empty one."""

    @classmethod
    def of(cls, path: Path) -> Mount:
        """The mount of an existing path: the last one of its device, which hides those before."""
        device = os.stat(path).st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        point, filesystem, words = "?", "unknown", ""
        with open("/proc/self/mountinfo") as mounts:
            for line in mounts:
                fields = line.split()
                if fields[2] == wanted:
                    after = fields.index("-")
                    point, filesystem = fields[4], fields[after + 1]
                    words = f"{fields[5]},{fields[after + 3]}"
        found = os.statvfs(path)
        pairs = (word.partition("=") for word in words.split(","))
        options = {key: value for key, _, value in pairs}
        return cls(point, filesystem, found.f_blocks * found.f_frsize, options)
