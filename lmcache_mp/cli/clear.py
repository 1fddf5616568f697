"""`lmcache-mp clear`."""

from __future__ import annotations

from lmcache_mp.cli.link import call
from lmcache_mp.cli.sources import Resolved
from lmcache_mp.messages import Clear


def run(resolved: Resolved) -> int:
    """Forget every chunk in L1, and say how many that were."""
    cleared = call(resolved.config, Clear(), timeout_s=60.0)
    print(f"cleared {cleared.cleared_chunks} chunks of server {resolved.config.name!r}")
    return 0
