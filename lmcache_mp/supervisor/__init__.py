"""The supervisor: starts a server's processes, watches them, restarts what died, stops them.

Reading order: `restart` (when), `child` (one process), `pulse` (is the engine there?), `signals`
(what wakes the loop), `supervisor` (the loop), `claim` (what is held meanwhile), `serve`.
"""

from lmcache_mp.supervisor.claim import CannotStart
from lmcache_mp.supervisor.serve import serve

__all__ = ["CannotStart", "serve"]
