"""What is said over the bus about L2: by workers, which pull their work, and by operators.

A lease that work comes with has the call id of its `TakeWork`, as every lease has its request's.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec
from msgspec import Meta

from bus import Done, Message, Request
from lmcache_mp.messages import Keys, LeaseId, Slots

Name = Annotated[str, Meta(max_length=64)]
Sentence = Annotated[str, Meta(max_length=4096)]
MAX_WORK = 512
"""Keys in one piece of work."""


class Lane(enum.IntEnum):
    """Work of a kind waits for threads of its own, so that slow stores hold up no lookup."""

    ASK = 0
    """Lookups, deletes, clears."""
    LOAD = 1
    STORE = 2


class Verb(enum.IntEnum):
    """What is to be done about some keys."""

    LOOKUP = 1
    DELETE = 2
    CLEAR = 3
    """Everything; it comes without keys."""
    LOAD = 4
    STORE = 5


class Outcome(enum.IntEnum):
    """What became of one key; a byte in `WorkDone.outcomes`."""

    ABSENT = 0
    DONE = 1
    """It is there; it was stored, or was there before; its bytes are in L1."""
    FAILED = 2


ABSENT, DONE, FAILED = (int(outcome) for outcome in Outcome)


class Work(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Answer to `TakeWork`, which stays open until there is some."""

    verb: Verb
    namespace: bytes
    """Digest of the keys' namespace."""
    chunk_bytes: int
    keys: Keys
    slots: Slots = b""
    """Of LOAD and STORE: where the chunks' bytes go, or are."""


class TakeWork(Request[Work], frozen=True, array_like=True):
    """From a worker's thread: give me something to do."""

    adapter: Name
    lane: Lane
    max_chunks: Annotated[int, Meta(ge=1, le=MAX_WORK)]
    max_bytes: Annotated[int, Meta(ge=1)]


class WorkDone(Request[Done], frozen=True, array_like=True):
    """From the same thread: done with what came under that call id. Ends its lease."""

    adapter: Name
    work_id: LeaseId
    outcomes: Annotated[bytes, Meta(max_length=MAX_WORK)]
    """One byte for each key, an `Outcome`; of CLEAR one byte."""


class WorkerReport(Request[Done], frozen=True, kw_only=True):
    """From a worker about every second, and at once when its state changes."""

    adapter: Name
    pid: int
    open: bool
    """Whether its adapter can be used."""
    error: Sentence = ""
    """Why not."""
    figures: Annotated[dict[Name, int | float], Meta(max_length=64)]


class L2Attached(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `L2Attach`: it can be used."""

    name: str


class L2Attach(Request[L2Attached], frozen=True, kw_only=True):
    """Use one more adapter from now on. An adapter that cannot be opened is not attached."""

    spec: Annotated[str, Meta(max_length=65536)]
    """JSON of the mapping that people write."""


class L2Detach(Request[Done], frozen=True, kw_only=True):
    """Stop using an adapter; what waits for it is finished first, for so long."""

    name: Name
    drain_s: Annotated[float, Meta(ge=0, le=3600)] = 10.0


class L2Clear(Request[Done], frozen=True, kw_only=True):
    """Delete every object of an adapter, whoever stored it."""

    name: Name


class Prefetched(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Answer to `Prefetch`: so many chunks of the prefix are in L1 already."""

    l1_chunks: int


class Prefetch(Request[Prefetched], frozen=True):
    """Bring what L2 has of a prompt to L1. `Lookup` tells how far that is."""

    namespace_id: int
    keys: Keys


ALL: tuple[type[Message], ...] = (
    TakeWork,
    WorkDone,
    WorkerReport,
    L2Attach,
    L2Detach,
    L2Clear,
    Prefetch,
)
