"""For the tests of people who extend the server: the contract of L2 adapters, as one call.

    def test_keeps_the_contract(tmp_path):
        config = my_adapter.Config(path=str(tmp_path))
        check_l2_adapter(lambda: my_adapter.Adapter(config))

Needs no test framework: what is broken is raised as `ContractBroken`, an AssertionError.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from lmcache_mp.l2 import AnyAdapter
from lmcache_mp.testing import checks, races
from lmcache_mp.testing.objects import Opened
from lmcache_mp.testing.promises import CLOSE, ContractBroken, eventually, promise

__all__ = ["ContractBroken", "check_l2_adapter"]


def check_l2_adapter(
    open_adapter: Callable[[], AnyAdapter],
    *,
    chunk_bytes: int = 4 << 20,
    persistent: bool = True,
) -> None:
    """Raise `ContractBroken` unless the adapter keeps the contract of `lmcache_mp.l2`.

    `open_adapter` opens it, each time on the same place, which may hold objects of others and needs
    room for 16 chunks; what is stored is deleted at the end. `persistent`: what it stored is there
    for the adapter that is opened after it was closed.
    """
    with Opened(open_adapter) as opened:  # libraries start threads of their own at their first use
        checks.check_misses(opened.adapter)
    resources = _resources()
    with Opened(open_adapter) as opened:
        checks.check_misses(opened.adapter)
        checks.check_shapes(opened, chunk_bytes)
        checks.check_other_lengths(opened, chunk_bytes)
        checks.check_many(opened)
        races.check_one_key_at_once(opened, chunk_bytes // 4)
        races.check_everything_at_once(opened, chunk_bytes // 16)
        checks.check_figures(opened.adapter)
        checks.check_reopening(opened, persistent)
    with promise(CLOSE):
        eventually(
            lambda: all(now <= before for now, before in zip(_resources(), resources, strict=True)),
            lambda: (
                f"(threads, descriptors) were {resources} before it was opened, and "
                f"{_resources()} after it was closed"
            ),
        )


def _resources() -> tuple[int, int]:
    """Threads and descriptors of this process."""
    return threading.active_count(), len(os.listdir("/proc/self/fd"))
