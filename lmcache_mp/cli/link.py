"""A command's calls to a running server: the one of this host, or one at an address."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeVar

import bus
from lmcache_mp import flock
from lmcache_mp.access import why_no_access
from lmcache_mp.cli.failure import Failure
from lmcache_mp.cli.sources import KEY_FILE_VARIABLE
from lmcache_mp.config import Config
from lmcache_mp.key_files import curve_for
from lmcache_mp.rundir import RunDir

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Link:
    """Which server is meant: the one at `address`, else the one of this host in `config`."""

    config: Config
    address: str | None = None
    key_file: str | None = None

    def call(self, request: bus.Request[R], timeout_s: float = 10.0) -> R:
        """The server's answer; raises `Failure` if there is none."""
        if self.address is not None:
            return self._ask(self.address, request, timeout_s)
        run_dir = self.config.resolved_run_dir()
        try:
            return self._ask(run_dir.bus_address, request, timeout_s)
        except _Away:
            raise Failure(_why_nobody_answers(self.config.name, run_dir)) from None

    @property
    def place(self) -> str:
        """The server, in words."""
        return self.address or f"server {self.config.name!r}"

    def _ask(self, address: str, request: bus.Request[R], timeout_s: float) -> R:
        curve = curve_for(address, self.key_file or os.environ.get(KEY_FILE_VARIABLE))
        try:
            with bus.Client(address, curve=curve) as client:
                return client.call(request, timeout_s)
        except bus.Unavailable as fault:
            raise _Away(str(fault)) from None
        except bus.BusError as fault:
            raise Failure(str(fault)) from None


class _Away(Failure):
    """Nobody listens, or not to us."""


def _why_nobody_answers(name: str, run_dir: RunDir) -> str:
    if why := why_no_access(run_dir.bus_address):
        return f"no access to server {name!r} in {run_dir.path}: {why}"
    if flock.is_held(run_dir.path / "supervisor.lock"):
        return (
            f"server {name!r} runs as pid {run_dir.lock_holder('supervisor')}, but its engine is"
            " starting or stopping: try again, or look into its log"
        )
    return f"no server {name!r} runs in {run_dir.path}: start one with `lmcache-mp serve`"
