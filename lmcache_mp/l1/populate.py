"""The helper process that backs the segment with memory, front to back, and reports how far it is.

    python -m lmcache_mp.l1.populate --bus ADDRESS --segment PATH --l1-id HEX [--start BYTES]

First touch of fresh shared memory costs many times a copy into warm memory, and takes seconds for
a large L1; here it holds up nobody. Only what is populated is handed out, so nobody gets SIGBUS.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import mmap
import os
import sys

import bus
from lmcache_mp import process
from lmcache_mp.logging import configure, init_logger
from lmcache_mp.madvise import (
    MADV_HUGEPAGE,
    MADV_POPULATE_WRITE,
    MADV_REMOVE,
    NoMemoryLeft,
    address_of,
    madvise,
)
from lmcache_mp.messages import Populated

log = init_logger("lmcache_mp.l1.populate")

STEP_BYTES = 64 << 20
SMALLEST_STEP_BYTES = 64 << 10
"""Where memory runs out, steps go down to the smallest page of L1."""
RECORDS_SHARE = 64
ANSWER_S = 60.0
"""An engine that answers no sooner is ended by its supervisor."""


def main() -> None:
    """Populate and report until done, or until there is no more room."""
    parser = argparse.ArgumentParser(prog="lmcache_mp.l1.populate")
    parser.add_argument("--bus", required=True)
    parser.add_argument("--segment", required=True)
    parser.add_argument("--l1-id", required=True)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="text")
    options = parser.parse_args()
    process.die_with_parent()
    configure(options.log_level, options.log_format, "populate")
    process.give_way()
    try:
        with bus.Client(options.bus) as client:
            populate(client, options.segment, bytes.fromhex(options.l1_id), options.start)
    except bus.BusError as fault:  # the engine is gone, and its successor has a helper of its own
        log.info("stopped populating: %s", fault)
        sys.exit(1)  # or it hung, and is to know


def populate(client: bus.Client, segment: str, l1_id: bytes, done: int) -> None:
    """Back the segment step by step, from `done` on, telling the engine after each."""
    descriptor = os.open(segment, os.O_RDWR | os.O_CLOEXEC)
    size = os.fstat(descriptor).st_size
    with mmap.mmap(descriptor, size) as mapping:
        address = address_of(mapping)
        with contextlib.suppress(OSError):  # a kernel without huge pages: slower, not wrong
            madvise(address, size, MADV_HUGEPAGE)
        error = ""
        while done < size and not error:
            length = min(STEP_BYTES, size - done)
            try:
                _back(descriptor, address, done, length)
                done += length
            except OSError as fault:
                error = _reason(fault)
                done = _back_what_fits(descriptor, address, done, size)
            client.call(Populated(l1_id=l1_id, populated_bytes=done, error=error), ANSWER_S)


def _back_what_fits(descriptor: int, address: int, start: int, size: int) -> int:
    """Back what still finds room from `start` on; returns where that ends.

    Some of it is given back: the records of what is stored there need room as well.
    """
    end, step = start, STEP_BYTES // 2
    while step >= SMALLEST_STEP_BYTES:
        if end + step <= size:
            with contextlib.suppress(OSError):
                _back(descriptor, address, end, step)
                end += step
                continue
        step //= 2
    end = max(start, (end - end // RECORDS_SHARE) // SMALLEST_STEP_BYTES * SMALLEST_STEP_BYTES)
    with contextlib.suppress(OSError):  # a file system that makes no holes
        madvise(address + end, size - end, MADV_REMOVE)
    return end


def _back(descriptor: int, address: int, start: int, length: int) -> None:
    try:
        madvise(address + start, length, MADV_POPULATE_WRITE)
    except OSError as fault:
        if fault.errno != errno.EINVAL:
            raise
        os.posix_fallocate(descriptor, start, length)  # an older kernel


def _reason(fault: OSError) -> str:
    full = isinstance(fault, NoMemoryLeft) or fault.errno == errno.ENOSPC
    return "the file system or the memory is full" if full else str(fault.strerror)


if __name__ == "__main__":
    main()
