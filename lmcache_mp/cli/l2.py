"""`lmcache-mp l2`."""

from __future__ import annotations

import msgspec

from lmcache_mp.cli.failure import Failure
from lmcache_mp.cli.link import Link
from lmcache_mp.cli.screen import adapters, console
from lmcache_mp.cli.sources import Resolved
from lmcache_mp.messages import Status
from lmcache_mp.tiering.messages import L2Attach, L2Clear, L2Detach

ATTACH_TIMEOUT_S = 60.0
CLEAR_TIMEOUT_S = 3600.0


def run(
    resolved: Resolved,
    *,
    verb: str,
    adapter: str | None,
    json: bool,
    address: str | None,
    key_file: str | None,
) -> int:
    """List, attach, detach or clear adapters of a running server."""
    link = Link(resolved.config, address, key_file)
    if verb == "list":
        if adapter is not None:
            raise Failure(f"l2 list takes no argument, and was given {adapter!r}")
        _list(link, as_json=json)
        return 0
    if adapter is None:
        what = 'a mapping such as \'{"type": "fs", ...}\'' if verb == "attach" else "a name"
        raise Failure(f"l2 {verb} needs {what}")
    if verb == "attach":
        name = link.call(L2Attach(spec=adapter), ATTACH_TIMEOUT_S).name
        print(f"attached {name} to {link.place}")
    elif verb == "detach":
        drain_s = resolved.config.drain_s
        link.call(L2Detach(name=adapter, drain_s=drain_s), drain_s + ATTACH_TIMEOUT_S)
        print(f"detached {adapter} from {link.place}")
    else:
        link.call(L2Clear(name=adapter), CLEAR_TIMEOUT_S)
        print(f"cleared {adapter} of {link.place}")
    return 0


def _list(link: Link, *, as_json: bool) -> None:
    found = link.call(Status()).l2
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    elif found:
        console().print(adapters(found))
    else:
        print(f"{link.place} has no L2 adapter: attach one with `lmcache-mp l2 attach`")
