"""A server with adapters, whose workers are up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from typing import Any

import msgspec

from benchmarks.server import own_server, status
from lmcache_mp.rundir import RunDir
from lmcache_mp.tiering.status import L2Status
from lmcache_mp.units import Size

PATIENCE_S = 60.0
LOOK_AGAIN_S = 0.002


@contextlib.contextmanager
def node(l1_size: Size, adapter: dict[str, Any]) -> Generator[RunDir, None, None]:
    """A server with one adapter, as soon as that can be used."""
    with own_server(l1_size, l2=[msgspec.json.encode(adapter).decode()]) as run_dir:
        wait_until(lambda: adapter_of(run_dir).state == "open", "its adapter is open")
        yield run_dir


def adapter_of(run_dir: RunDir) -> L2Status:
    """How the only adapter is doing."""
    (found,) = status(run_dir).l2
    return found


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Return as soon as something is so; raises `TimeoutError`."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{PATIENCE_S:g} s were not enough until {what}")
        time.sleep(LOOK_AGAIN_S)
