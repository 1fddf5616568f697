"""How much memory there is for L1: the least of what the filesystem, the machine and every control
group around us still have."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30
_NO_LIMIT = 1 << 60  # what cgroup v1 writes for "unlimited" is larger
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that could be taken, and what bounds them."""

    available_bytes: int
    bound_by: str


def room(directory: Path) -> Room:
    """What is left for files in `directory`, a tmpfs or any other filesystem."""
    found = os.statvfs(directory)
    rooms = [Room(found.f_bavail * found.f_frsize, f"free space of {directory}")]
    rooms.append(Room(_mem_available(), "MemAvailable of the machine"))
    rooms += _cgroup_rooms()
    return min(rooms, key=lambda candidate: candidate.available_bytes)


def default_l1_bytes(directory: Path) -> int:
    """Half of the room, in whole GiB where there are any: the rest is the engines'."""
    half = room(directory).available_bytes // 2
    unit = GIB if half >= GIB else 1 << 20
    return half // unit * unit


def _mem_available() -> int:
    with open("/proc/meminfo") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return _NO_LIMIT


def _cgroup_rooms() -> list[Room]:
    """Every memory limit on the way from our control group up to the root, v1 and v2."""
    rooms: list[Room] = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, usage = CGROUPS, "memory.max", "memory.current"
            if (CGROUPS / "unified").is_dir():
                base = CGROUPS / "unified"
        elif "memory" in controllers.split(","):
            base, limit, usage = (
                CGROUPS / "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            )
        else:
            continue
        group = base / path.lstrip("/")
        for directory in (group, *group.parents):
            if not directory.is_relative_to(base):
                break
            left = _left(directory / limit, directory / usage)
            if left is not None:
                rooms.append(Room(left, f"{directory / limit}"))
    return rooms


def _left(limit: Path, usage: Path) -> int | None:
    try:
        bound = limit.read_text().strip()
        if bound == "max" or int(bound) > _NO_LIMIT:
            return None
        return max(0, int(bound) - int(usage.read_text()))
    except (OSError, ValueError):
        return None
