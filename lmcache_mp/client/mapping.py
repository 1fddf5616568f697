"""L1 as this process sees it: the segment, mapped whole."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Callable

import bus
from lmcache_mp.madvise import MADV_DONTFORK, MADV_POPULATE_WRITE, address_of, madvise
from lmcache_mp.messages import Segment

STEP_BYTES = 64 << 20
ASK_AGAIN_S = 0.5


class Mapping:
    """One mapped segment. Its page tables are filled by a thread, in steps and without the GIL:
    the first pass over a fresh mapping is an eighth as fast as every later one.
    """

    def __init__(self, segment: Segment, l1_id: bytes, ask: Callable[[], Segment]) -> None:
        """`ask` tells how far the server has populated a segment that it has just made: it is the
        server's memory, so this process touches nothing before. Raises `OSError`.
        """
        self.l1_id = l1_id
        descriptor = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._mmap = mmap.mmap(descriptor, segment.size_bytes)
        finally:
            os.close(descriptor)
        self.writable = memoryview(self._mmap)
        """All of it; a slot begins at its address times `SLOT_UNIT_BYTES`."""
        self.readable = self.writable.toreadonly()
        self._address = address_of(self._mmap)
        madvise(self._address, segment.size_bytes, MADV_DONTFORK)
        self._closing = threading.Event()
        self._populator = threading.Thread(
            target=self._populate, args=(segment, ask), name="lmcache-mp populate", daemon=True
        )
        self._populator.start()

    def retire(self) -> None:
        """Stop populating. It is unmapped when the last slot that is still held lets go of it."""
        self._closing.set()
        self._populator.join()

    def close(self) -> None:
        """Unmap, or leave that to the last view that is still in use."""
        self.retire()
        with contextlib.suppress(BufferError):
            self.readable.release()
            self.writable.release()
            self._mmap.close()

    def _populate(self, segment: Segment, ask: Callable[[], Segment]) -> None:
        done = 0
        while not self._closing.is_set():
            while done < segment.populated_bytes and not self._closing.is_set():
                length = min(STEP_BYTES, segment.populated_bytes - done)
                try:
                    madvise(self._address + done, length, MADV_POPULATE_WRITE)
                except OSError:  # a kernel that cannot: pages come as they are used
                    return
                done += length
            if segment.populated_bytes == segment.size_bytes or self._closing.wait(ASK_AGAIN_S):
                return
            try:
                segment = ask()
            except bus.BusError:  # the server is away; what is left comes as it is used
                return
