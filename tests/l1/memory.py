"""An L1 over plain bytearrays, for tests of the core."""

from lmcache_mp.l1.geometry import Geometry
from lmcache_mp.l1.state_file import StateFile
from lmcache_mp.l1.tier import L1

PAGE_BYTES = 16384
PROMPT_CHUNKS = 4


def prompt_keys(first: int, chunks: int) -> bytes:
    """Keys that are numbers."""
    return b"".join(n.to_bytes(32, "big") for n in range(first, first + chunks))


def geometry(pages: int) -> Geometry:
    return Geometry(
        l1_bytes=pages * PAGE_BYTES,
        page_bytes=PAGE_BYTES,
        l1_id=bytes(16),
        boot_id="boot",
        segment_inode=1,
        namespaces=8,
        leases=64,
    )


def state_file(pages: int) -> StateFile:
    shape = geometry(pages)
    state = StateFile(memoryview(bytearray(shape.file_bytes)), shape)
    state.format()
    return state


def new_l1(pages: int, populated_pages: int | None = None) -> L1:
    l1 = L1(state_file(pages))
    grow(l1, pages if populated_pages is None else populated_pages)
    return l1


def grow(l1: L1, pages: int) -> None:
    l1.state.populated_bytes = pages * PAGE_BYTES
    l1.allocator.pages.populate(pages)


def after_crash(l1: L1) -> L1:
    """An empty L1 over a copy of the state file, as a restarted engine maps it."""
    copy = memoryview(bytearray(l1.state.buffer))
    return L1(StateFile(copy, Geometry.from_header(copy)))
