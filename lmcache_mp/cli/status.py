"""`lmcache-mp status`."""

from __future__ import annotations

import msgspec

from lmcache_mp.cli.link import call
from lmcache_mp.cli.sources import Resolved
from lmcache_mp.messages import Status


def run(resolved: Resolved, *, json: bool) -> int:
    """Show the report of a running server, for people or as JSON."""
    report = call(resolved.config, Status())
    if json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        from lmcache_mp.cli.screen import show

        show(report)
    return 0
