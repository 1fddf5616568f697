"""madvise(2) without holding the GIL, and with the advice that Python's `mmap` does not know."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

MADV_REMOVE = 9
MADV_DONTFORK = 10
MADV_HUGEPAGE = 14
MADV_POPULATE_WRITE = 23  # Linux 5.14

_libc = ctypes.CDLL(None, use_errno=True)  # lets go of the GIL, unlike mmap.madvise
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class NoMemoryLeft(OSError):
    """The mapping cannot be backed any further."""


def madvise(address: int, length: int, advice: int) -> None:
    """Raises `NoMemoryLeft` where a page cannot be backed, `OSError` for anything else."""
    if _libc.madvise(address, length, advice) != 0:
        code = ctypes.get_errno()
        kind = NoMemoryLeft if code in (errno.EFAULT, errno.ENOMEM) else OSError
        raise kind(code, os.strerror(code))


def address_of(mapping: mmap.mmap) -> int:
    """Where a writable mapping begins."""
    pin = ctypes.c_char.from_buffer(mapping)
    try:
        return ctypes.addressof(pin)
    finally:
        del pin  # else the mapping could never be closed
