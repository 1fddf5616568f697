"""One process of the server, over all its incarnations."""

from __future__ import annotations

import enum
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

from lmcache_mp.logging import init_logger
from lmcache_mp.messages import ProcessInfo
from lmcache_mp.process import child_environment
from lmcache_mp.supervisor.restart import RestartPolicy

log = init_logger(__name__)


class State(enum.StrEnum):
    """What a process is doing, as `status` shows it."""

    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"  # dead, to be started at `start_at_s`
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(slots=True)
class Child:
    """A process that is started again when it dies.

    Only the supervisor reaps, so `pid` is never somebody else's while `alive`: until it is reaped a
    dead process keeps its number.
    """

    name: str
    command: Sequence[str]
    cold_command: Sequence[str] = ()
    """What to run when it died three times in a row before it was ready; never, if empty."""
    pass_fds: tuple[int, ...] = ()
    address: str = ""
    probed: bool = False
    """Whether it is ready only once it answered; else it is as soon as it is started."""
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    state: State = State.STOPPED
    restarts: int = -1
    note: str = ""
    ever_ready: bool = False
    start_at_s: float = 0.0
    started_s: float = 0.0
    _process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether there is a process to signal, or to reap."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """Of the living process; 0 if there is none."""
        return self._process.pid if self._process is not None else 0

    def start(self, now_s: float) -> None:
        """Execute the command, from the main thread: the child dies with the thread that did."""
        command = self.command
        if self.cold_command and self.policy.start_cold:
            command = self.cold_command
            log.warning(
                "%s died %d times before it was ready: starting it cold, without the old L1",
                self.name,
                self.policy.deaths_unready,
            )
        self.restarts += 1
        self.started_s = now_s
        self.state = State.STARTING
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=self.pass_fds,
                env=child_environment(),
                start_new_session=True,  # Ctrl-C is the supervisor's to translate
            )
        except OSError as fault:  # no memory, no more processes
            self.died(f"cannot be started: {fault}", now_s)
            return
        log.info("%s started pid=%d", self.name, self.pid)
        if not self.probed:
            self.ready(now_s)

    def ready(self, now_s: float) -> None:
        """It does its work."""
        if self.state == State.STARTING:
            self.state = State.RUNNING
            self.ever_ready = True
            self.policy.ready(now_s)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it lives."""
        if self._process is not None:
            os.kill(self._process.pid, number)

    def reaped(self, exit_code: int) -> None:
        """Its process has been waited for."""
        assert self._process is not None
        self._process.returncode = exit_code  # Popen is not to wait for it
        self._process = None

    def died(self, why: str, now_s: float) -> None:
        """It ended unasked: say when it is to be started again."""
        delay_s = self.policy.died(now_s)
        self.state = State.RESTARTING
        self.note = why
        self.start_at_s = now_s + delay_s
        log.error("%s %s: starting it again in %.1f s", self.name, why, delay_s)

    def info(self, now_s: float) -> ProcessInfo:
        """Its row in the table of processes."""
        return ProcessInfo(
            pid=self.pid,
            state=self.state.value,
            restarts=max(self.restarts, 0),
            uptime_s=max(0.0, now_s - self.started_s) if self.alive else 0.0,
            address=self.address,
            note=self.note,
        )


def describe_exit(exit_code: int) -> str:
    """How a process ended, in words."""
    if exit_code >= 0:
        return f"exited with code {exit_code}"
    try:
        return f"was killed by {signal.Signals(-exit_code).name}"
    except ValueError:  # a real-time signal
        return f"was killed by signal {-exit_code}"


def reap() -> list[tuple[int, int]]:
    """`(pid, exit code)` of every child that ended, orphans that init inherited included."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append((pid, os.waitstatus_to_exitcode(status)))
