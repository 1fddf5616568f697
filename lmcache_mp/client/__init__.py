"""The client that inference engines use; README has an example.

Importing it pulls in no torch, fastapi or numpy. Reading order: `mapping`, `session` (the standing
with the server), `leases` (what is held while copying), `cache` (the verbs).
"""

from lmcache_mp.client.cache import CacheClient
from lmcache_mp.client.counters import Counters
from lmcache_mp.client.leases import Pin, RetrieveHit, StoreBatch
from lmcache_mp.keys import ChunkKeys, chunk_keys
from lmcache_mp.messages import LookupReply
from lmcache_mp.namespace import Namespace
from lmcache_mp.rundir import server_address

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
    "server_address",
]
