"""Whether L1 fits where it is to be, and how fast that memory is."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lmcache_mp.config import MIN_L1_SIZE
from lmcache_mp.doctor.finding import Finding, advice, ok, problem
from lmcache_mp.doctor.mount import Mount
from lmcache_mp.l1.room import GIB, default_l1_bytes, room
from lmcache_mp.units import format_bytes

IN_MEMORY = ("tmpfs", "ramfs", "hugetlbfs", "devtmpfs")
SMALL_BYTES = GIB
"""A few long prompts of a small model; below it a cache is hardly one."""
POPULATE_SINCE = (5, 14)
"""The kernel that brought MADV_POPULATE_WRITE: madvise(2)."""

LARGER_SHM = (
    "give the container more: docker run --shm-size=64g (or --ipc=host); in Kubernetes mount an"
    " emptyDir with medium: Memory at {}; or choose another --l1-dir"
)


def l1_directory(directory: Path) -> Finding:
    """Is it there, may we write to it, and is it memory?"""
    check = "l1 directory"
    if not directory.is_dir():
        return problem(check, f"{directory} is no directory", "create it, or choose an --l1-dir")
    if not os.access(directory, os.W_OK | os.X_OK):
        change = f"let uid {os.geteuid()} write there, or choose another --l1-dir"
        return problem(check, f"{directory} may not be written to", change)
    mount = Mount.of(directory)
    size = format_bytes(mount.size_bytes)
    if mount.filesystem not in IN_MEMORY:
        return advice(
            check,
            f"{directory} is on {mount.filesystem}, {size}: L1 would be files on a disk",
            "mount a tmpfs there, or choose /dev/shm with --l1-dir",
        )
    if mount.size_bytes < SMALL_BYTES:
        change = LARGER_SHM.format(directory)
        return advice(check, f"{directory} is a {mount.filesystem} of no more than {size}", change)
    return ok(check, f"{directory} is a {mount.filesystem} of {size}")


def l1_room(directory: Path, wanted_bytes: int | None, own_bytes: int = 0) -> Finding:
    """Does an L1 of that size fit; of the size that `serve` would choose, if it is None?

    `own_bytes`: what this server's L1 occupies already.
    """
    check = "room for l1"
    try:
        free = room(directory)
        wanted = wanted_bytes or default_l1_bytes(directory)
    except OSError as fault:
        return problem(check, f"{directory}: {fault.strerror}", "choose another --l1-dir")
    left_bytes = free.available_bytes + own_bytes
    left = f"{format_bytes(left_bytes)} left, bound by {free.bound_by}"
    if wanted_bytes is None and own_bytes:
        return ok(check, f"{left}; an L1 of {format_bytes(own_bytes)} is there")
    if wanted > left_bytes:
        change = f"lower --l1-size from {format_bytes(wanted)}, or raise that bound"
        return problem(check, left, change)
    if wanted < MIN_L1_SIZE:
        change = f"raise that bound: the least L1 is {MIN_L1_SIZE}"
        return problem(check, f"{left}: L1 would have {format_bytes(wanted)}", change)
    if wanted < SMALL_BYTES:
        change = "raise that bound, or --l1-size: one chunk of a large model may take 100 MiB"
        return advice(check, f"{left}: L1 would have {format_bytes(wanted)}", change)
    return ok(check, f"{left}; L1 would have {format_bytes(wanted)}")


def huge_pages(directory: Path, shmem_enabled: str) -> Finding:
    """Do mappings of L1 get huge pages? Each process maps it ten and more times faster then.

    `shmem_enabled`: the words of /sys/kernel/mm/transparent_hugepage/shmem_enabled. Its `deny` and
    `force` overrule every mount; its other values are for memory that is no mounted tmpfs.
    """
    check = "huge pages"
    mount = Mount.of(directory)
    if mount.filesystem == "hugetlbfs":
        return ok(check, f"{directory} is a hugetlbfs")
    if mount.filesystem != "tmpfs" or not shmem_enabled:
        return ok(check, f"not for {mount.filesystem} on this kernel")
    chosen = re.search(r"\[(\w+)\]", shmem_enabled)
    overruled = chosen[1] if chosen is not None else ""
    huge = mount.options.get("huge", "never")
    if overruled == "deny":
        file = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
        return advice(check, "the kernel denies them to every tmpfs", f"echo never > {file}")
    if overruled == "force" or huge != "never":
        return ok(check, f"{directory} has huge={huge if overruled != 'force' else 'force'}")
    change = f"mount -o remount,huge=advise {mount.point}"
    return advice(check, f"{directory} is mounted without: mapping L1 takes longer", change)


def kernel(release: str) -> Finding:
    """Can it populate memory in one call?"""
    check = "kernel"
    numbers = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    if numbers < POPULATE_SINCE:
        return advice(
            check,
            f"{release} has no MADV_POPULATE_WRITE: L1 is reserved, pages are touched by their use",
            "a kernel from {}.{} on populates L1 in the background".format(*POPULATE_SINCE),
        )
    return ok(check, release)
