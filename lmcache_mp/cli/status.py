"""`lmcache-mp status`."""

from __future__ import annotations

import msgspec

from lmcache_mp.cli.failure import Failure
from lmcache_mp.cli.link import Link
from lmcache_mp.cli.sources import Resolved
from lmcache_mp.messages import Status

SHORTEST_S, LONGEST_S = 0.1, 3600.0


def run(
    resolved: Resolved,
    *,
    json: bool,
    watch: str | None,
    address: str | None,
    key_file: str | None,
) -> int:
    """Show the report of a running server, for people or as JSON."""
    link = Link(resolved.config, address, key_file)
    if watch is not None:
        if json:
            raise Failure("--watch is for people: call `status --json` as often as you like", 2)
        from lmcache_mp.cli.watch import watch as watched

        return watched(link, _seconds(watch))
    report = link.call(Status())
    if json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        from lmcache_mp.cli.screen import console, page

        console().print(page(report))
    return 0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not SHORTEST_S <= seconds <= LONGEST_S:
        raise Failure(
            f"--watch {text!r}: expected a number of seconds from {SHORTEST_S:g} to {LONGEST_S:g}",
            2,
        )
    return seconds
