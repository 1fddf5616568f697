"""`lmcache-mp clear`."""

from __future__ import annotations

from lmcache_mp.cli.link import Link
from lmcache_mp.cli.sources import Resolved
from lmcache_mp.messages import Clear


def run(resolved: Resolved, *, address: str | None, key_file: str | None) -> int:
    """Forget every chunk in L1, and say how many that were."""
    link = Link(resolved.config, address, key_file)
    cleared = link.call(Clear(), timeout_s=60.0)
    print(f"cleared {cleared.cleared_chunks} chunks of {link.place}")
    return 0
