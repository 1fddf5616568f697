"""python -m tests.store_and_retrieve ADDRESS: store two chunks and read them back, as any user.

Prints `stored N retrieved M` or the sentence that a client got, and with `hold` waits for a line of
stdin while it holds what it stored.
"""

from __future__ import annotations

import sys

import bus
from lmcache_mp.client import CacheClient
from tests.world import NAMESPACE


def main(address: str, *flags: str) -> None:
    try:
        with CacheClient.connect(address, NAMESPACE, fail_open=False) as cache:
            keys = cache.chunk_keys(range(2 * NAMESPACE.chunk_tokens))
            stored = retrieved = 0
            with cache.store(keys) as batch:
                for index, view in batch.slots():
                    view[:] = bytes([index + 1]) * len(view)
                    stored += 1
            with cache.retrieve(keys) as hit:
                for index, view in hit.slots():
                    retrieved += bytes(view) == bytes([index + 1]) * len(view)
                print(f"stored {stored} retrieved {retrieved}", flush=True)
                if "hold" in flags:
                    sys.stdin.readline()
    except bus.BusError as fault:
        print(fault)


if __name__ == "__main__":
    main(*sys.argv[1:])
