"""A command's one call to a running server."""

from __future__ import annotations

from typing import TypeVar

import bus
from lmcache_mp import flock
from lmcache_mp.cli.failure import Failure
from lmcache_mp.config import Config
from lmcache_mp.rundir import RunDir

R = TypeVar("R")


def call(config: Config, request: bus.Request[R], timeout_s: float = 10.0) -> R:
    """The answer of the server that `config` names; raises `Failure` if there is none."""
    run_dir = config.resolved_run_dir()
    try:
        with bus.Client(run_dir.bus_address) as client:
            return client.call(request, timeout_s)
    except bus.Unavailable:
        raise Failure(_why_nobody_answers(config.name, run_dir)) from None
    except bus.BusError as fault:
        raise Failure(str(fault)) from None


def _why_nobody_answers(name: str, run_dir: RunDir) -> str:
    if flock.is_held(run_dir.path / "supervisor.lock"):
        return (
            f"server {name!r} runs as pid {run_dir.lock_holder('supervisor')}, but its engine is"
            " starting or stopping: try again, or look into its log"
        )
    return f"no server {name!r} runs in {run_dir.path}: start one with `lmcache-mp serve`"
