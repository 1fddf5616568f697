"""What is said when the operating system refuses."""

from __future__ import annotations

import errno
import os

from lmcache_mp.l2 import AdapterError

FULL = (errno.ENOSPC, errno.EDQUOT)

_GIVE = "give it to uid {uid}, with chown and chmod"

_LASTING = {
    errno.ENOSPC: "make room on its filesystem, of bytes or of inodes",
    errno.EDQUOT: "raise the quota, or set `capacity` below it",
    errno.EROFS: "mount it read-write",
    errno.EACCES: _GIVE,
    errno.EPERM: _GIVE,
    errno.ENOENT: "mount it, or create it with: mkdir -m 0700 {path}",
    errno.ENOTDIR: "name a directory",
}
"""What to do about it, and nothing helps before."""

_PASSING = {errno.EMFILE: "raise the limit, with ulimit -n"}


def explained(fault: OSError, path: str, verb: str) -> AdapterError:
    """`fault`, met when the adapter of `path` wanted to `verb`, as a sentence."""
    number = fault.errno or 0
    advice = {**_LASTING, **_PASSING}.get(number, "look into the log of the kernel or file server")
    return AdapterError(
        f"cannot {verb}: {fault.strerror}: {advice.format(uid=os.geteuid(), path=path)}",
        lasting=number in _LASTING,
    )
