"""A client with a mixed load, without the copying: a `benchmarks.callers` process.

    python -m benchmarks.hot_path.mixed_client ADDRESS SEED SECONDS

Of its calls 60 % look up and 20 % retrieve one of the `POOL` prompts that are there, and 20 % store
a new one: two round trips that count as one call.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable

from benchmarks.callers import call_for
from benchmarks.hot_path.prompts import NAMESPACE, prompt
from lmcache_mp.client import CacheClient, ChunkKeys

CHUNKS = 8
POOL = 256
MIX = ("lookup",) * 60 + ("retrieve",) * 20 + ("store",) * 20


def pool() -> list[ChunkKeys]:
    """The prompts that are there; retrieving keeps them young while stores evict the rest."""
    return [prompt(number, CHUNKS) for number in range(POOL)]


def mixed_call(cache: CacheClient, seed: int) -> Callable[[], None]:
    """One call of the mix, another one each time."""
    choice, known = random.Random(seed).choice, pool()
    salt = os.urandom(8)
    stored = 0

    def store() -> None:
        nonlocal stored
        stored += 1
        prefix = salt + stored.to_bytes(8, "little") + bytes(15)
        new = ChunkKeys(b"".join(prefix + bytes((index,)) for index in range(CHUNKS)))
        with cache.store(new) as batch:
            for _ in batch.slots():
                pass

    def retrieve() -> None:
        with cache.retrieve(choice(known)) as hit:
            for _ in hit.slots():
                pass

    verbs = {
        "lookup": lambda: cache.lookup(choice(known)),
        "retrieve": retrieve,
        "store": store,
    }

    def call() -> None:
        verbs[choice(MIX)]()

    return call


if __name__ == "__main__":
    address, number, seconds = sys.argv[1:]
    with CacheClient.connect(address, NAMESPACE, fail_open=False, timeout_s=30) as connected:
        call_for(mixed_call(connected, int(number)), float(seconds))
