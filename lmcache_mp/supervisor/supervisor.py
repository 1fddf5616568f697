"""The loop that keeps a server's processes alive, and ends them in order."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from lmcache_mp.logging import init_logger
from lmcache_mp.messages import ProcessInfo
from lmcache_mp.supervisor.child import Child, State, describe_exit, reap
from lmcache_mp.supervisor.pulse import Pulse
from lmcache_mp.supervisor.signals import Signals

log = init_logger(__name__)

REFUSES_SETTINGS = 2
"""Exit code of an engine that no restart can help; it has said why in its last line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the supervisor waits for what."""

    answer_s: float = 10.0
    """An engine that answers no heartbeat for so long hangs."""
    first_answer_s: float = 60.0
    """The same for one that adopts what its predecessor left."""
    abort_s: float = 2.0
    """From SIGABRT, which logs its stacks, to SIGKILL."""
    drain_s: float = 10.0
    """The engine's own time to let clients finish when it is told to stop."""
    stop_s: float = 5.0
    """Beyond that, or for http: from SIGTERM to SIGKILL."""
    hastened_s: float = 2.0
    """The same once somebody has said twice that it is to stop."""


class Supervisor:
    """Runs an engine, an http process and the engine's L2 workers until told to stop.

    One thread: the main one.
    """

    def __init__(
        self,
        engine: Child,
        http: Child,
        worker: Callable[[str], Child],
        bus_address: str,
        patience: Patience,
    ) -> None:
        """`worker` makes the child that serves an adapter."""
        self._engine = engine
        self._http = http
        self._worker = worker
        self._workers: dict[str, Child] = {}
        self._retired: list[Child] = []
        """Workers of adapters that were detached, on their way out."""
        self._bus_address = bus_address
        self._patience = patience
        self._pulse: Pulse | None = None
        self._kill_at_s: float | None = None
        self._hastened = False
        self._started_s = time.monotonic()
        self._signals = Signals()

    def run(self) -> int:
        """The exit code: 0 if told to stop, `REFUSES_SETTINGS` if the engine does from the start.

        Returns when every child has ended.
        """
        try:
            return self._watch()
        finally:
            self._end(self._engine, self._patience.drain_s + self._patience.stop_s)
            for child in (*self._workers.values(), *self._retired, self._http):
                self._end(child, self._patience.stop_s)
            self._signals.close()

    def _watch(self) -> int:
        for child in (self._engine, self._http):
            self._start(child)
        while True:
            now_s = time.monotonic()
            self._adjust_workers()
            for child in self._children:
                if child.state == State.RESTARTING and now_s >= child.start_at_s:
                    self._start(child)
            self._beat(now_s)
            if self._signals.wait(self._next_due_s(now_s) - now_s):
                log.info("told to stop")
                return 0
            for child, exit_code in self._reap():
                if child is self._engine and exit_code == REFUSES_SETTINGS and not child.ever_ready:
                    log.error("engine cannot run with these settings, as it says above: stopping")
                    return REFUSES_SETTINGS
                if child in self._retired:
                    self._retired.remove(child)
                elif exit_code == 0 and child in self._workers.values():
                    self._forget(child)  # its adapter was detached; if not, it is wanted again
                else:
                    child.died(self._cause(child, exit_code), time.monotonic())

    def _forget(self, worker: Child) -> None:
        self._workers = {n: child for n, child in self._workers.items() if child is not worker}

    @property
    def _children(self) -> list[Child]:
        """Those that are to run."""
        return [self._engine, self._http, *self._workers.values()]

    def _adjust_workers(self) -> None:
        """Start workers for new adapters, stop those of adapters that are gone."""
        if self._pulse is None or (wanted := self._pulse.wanted) is None:
            return
        for name in wanted:
            if name not in self._workers:
                self._workers[name] = self._worker(name)
                self._start(self._workers[name])
        for name in [name for name in self._workers if name not in wanted]:
            worker = self._workers.pop(name)
            worker.state = State.STOPPING
            worker.signal(signal.SIGTERM)
            if worker.alive:
                self._retired.append(worker)

    def _start(self, child: Child) -> None:
        now_s = time.monotonic()
        if child is self._engine:
            self._pulse = Pulse(self._bus_address, now_s)
            self._kill_at_s = None
        child.start(now_s)

    def _beat(self, now_s: float) -> None:
        """Ask the engine whether it is there, and tell it who is; end it if it hangs."""
        if self._pulse is None or not self._engine.alive:
            return
        self._pulse.tick(now_s, self._processes(now_s))
        if self._pulse.answered and self._engine.state == State.STARTING:
            self._engine.ready(now_s)
            log.info("engine answers after_s=%.2f", now_s - self._engine.started_s)
            self._pulse.tick(now_s, self._processes(now_s))
        answered = self._pulse.answered
        limit_s = self._patience.answer_s if answered else self._patience.first_answer_s
        if self._kill_at_s is None and self._pulse.silent_s > limit_s:
            log.error("engine has not answered for %.0f s: aborting it", self._pulse.silent_s)
            self._engine.signal(signal.SIGABRT)
            self._kill_at_s = now_s + self._patience.abort_s
        elif self._kill_at_s is not None and now_s >= self._kill_at_s:
            self._engine.signal(signal.SIGKILL)

    def _next_due_s(self, now_s: float) -> float:
        due_s = [child.start_at_s for child in self._children if child.state == State.RESTARTING]
        if self._pulse is not None and self._engine.alive:
            due_s.append(self._pulse.next_tick_s(now_s))
        return min(due_s, default=now_s + 1.0)

    def _reap(self) -> list[tuple[Child, int]]:
        """Our children that ended; as PID 1 there are others, whom nobody misses."""
        ended = dict(reap())
        ours = [
            (child, ended[child.pid])
            for child in (*self._children, *self._retired)
            if child.pid in ended
        ]
        for child, exit_code in ours:
            child.reaped(exit_code)
            if child is self._engine and self._pulse is not None:
                self._pulse.close()
                self._pulse = None
        return ours

    def _cause(self, child: Child, exit_code: int) -> str:
        if child is self._engine and self._kill_at_s is not None:
            return f"did not answer and {describe_exit(exit_code)}"
        return describe_exit(exit_code)

    def _end(self, child: Child, grace_s: float) -> None:
        """Stop a child and wait for it: SIGTERM, and SIGKILL if it takes too long."""
        if child.alive:
            child.state = State.STOPPING
            now_s = time.monotonic()
            if self._pulse is not None:
                self._pulse.tick(now_s, self._processes(now_s))
            child.signal(signal.SIGTERM)
            deadline_s = now_s + (self._patience.hastened_s if self._hastened else grace_s)
            while child.alive:
                deadline_s = self._await_end(child, deadline_s)
        child.state = State.STOPPED

    def _await_end(self, child: Child, deadline_s: float) -> float:
        """One round of waiting; returns the deadline, which may have moved."""
        now_s = time.monotonic()
        if now_s >= deadline_s:
            log.warning("%s pid=%d does not stop: killing it", child.name, child.pid)
            child.signal(signal.SIGKILL)
            deadline_s = now_s + self._patience.stop_s
        if self._signals.wait(deadline_s - now_s) and not self._hastened:
            log.warning("told to stop again: not waiting for the drain")
            self._hastened = True
            child.signal(signal.SIGINT)  # not SIGTERM: some inits send that to every process
            deadline_s = min(deadline_s, now_s + self._patience.hastened_s)
        for ended, exit_code in self._reap():
            ended.state = State.STOPPED
            log.info("%s %s", ended.name, describe_exit(exit_code))
        return deadline_s

    def _processes(self, now_s: float) -> dict[str, ProcessInfo]:
        supervisor = ProcessInfo(pid=os.getpid(), uptime_s=now_s - self._started_s)
        children = {child.name: child.info(now_s) for child in self._children}
        return {"supervisor": supervisor, **children}
