"""`lmcache-mp serve`."""

from __future__ import annotations

from lmcache_mp.cli.failure import Failure
from lmcache_mp.cli.sources import Resolved


def run(resolved: Resolved) -> int:
    """Run a server in the foreground until it is told to stop."""
    from lmcache_mp.supervisor import CannotStart, serve

    try:
        return serve(resolved.config)
    except CannotStart as fault:
        raise Failure(str(fault), exit_code=2) from None
