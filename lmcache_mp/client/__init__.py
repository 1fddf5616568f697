"""The client that inference engines use. Importing it pulls in no torch, fastapi or numpy.

from lmcache_mp.client import CacheClient, Namespace

namespace = Namespace(model="m", dtype="bfloat16", shard_bytes=8 << 20)
with CacheClient.connect(address, namespace) as cache:
    keys = cache.chunk_keys(token_ids)
    with cache.store(keys) as batch:
        for index, view in batch.slots():
            view[:] = kv_bytes(index)
    with cache.retrieve(keys) as hit:
        for index, view in hit.slots():
            use(index, view)
"""

from lmcache_mp.client.cache import CacheClient, Counters
from lmcache_mp.client.leases import Pin, RetrieveHit, StoreBatch
from lmcache_mp.keys import ChunkKeys, chunk_keys
from lmcache_mp.messages import LookupReply
from lmcache_mp.namespace import Namespace

__all__ = [
    "CacheClient",
    "ChunkKeys",
    "Counters",
    "LookupReply",
    "Namespace",
    "Pin",
    "RetrieveHit",
    "StoreBatch",
    "chunk_keys",
]
