"""A child to be killed: stores and deletes, and tells of each only when it is done (of a deletion:
before it begins).
"""

import sys
from pathlib import Path

from lmcache_mp.l1.segment import open_store
from lmcache_mp.l1.tier import L1
from lmcache_mp.namespace import Namespace
from lmcache_mp.rundir import L1Files
from tests.l1.memory import PROMPT_CHUNKS, prompt_keys

PROMPTS = 50


def main() -> None:
    directory = Path(sys.argv[1])
    files = L1Files(directory / "l1", directory / "state")
    store = open_store(files, 1 << 20, adopt=False)
    files.segment.write_bytes(bytes(1 << 20))
    l1 = L1(store.state)
    l1.state.populated_bytes = 1 << 20
    l1.allocator.pages.populate(l1.state.geometry.pages)
    entry = l1.namespaces.register(Namespace(model="m", dtype="u8", shard_bytes=4096))
    owner = l1.ledger.owner(b"o" * 16)
    for call_id in range(1, 1 << 30):
        first = call_id % PROMPTS * PROMPT_CHUNKS
        keys = prompt_keys(first, PROMPT_CHUNKS)
        if l1.prepare_store(owner, call_id, entry, keys, 0, b"", 0.0).indices:
            l1.commit_store(owner, call_id, None, 0.0)
            print("committed", first, flush=True)
        if call_id % 7 == 0:
            print("deleting", first, flush=True)
            l1.delete(entry, keys)


if __name__ == "__main__":
    main()
