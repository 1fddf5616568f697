"""python -m tests.fuzz.doomed ADDRESS: a client with a lease that waits to be killed."""

from __future__ import annotations

import sys

from lmcache_mp.client import CacheClient
from tests.world import NAMESPACE


def main() -> None:
    cache = CacheClient.connect(sys.argv[1], NAMESPACE, fail_open=False)
    batch = cache.begin_store(cache.chunk_keys(range(4)))
    print("leased", len(list(batch.slots())), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
