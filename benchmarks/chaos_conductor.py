"""The conductor of a chaos run: makes the events of a plan happen, and cleans up after them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import bus
from benchmarks.chaos_account import IN_FLIGHT_S, Account
from benchmarks.chaos_audit import auditor
from benchmarks.chaos_crew import Crew
from benchmarks.chaos_plan import CLIENT_DEATHS, PEERS, Event, Kind
from benchmarks.chaos_prompts import NAMESPACES
from benchmarks.chaos_server import ENGINE, HTTP, ChaosServer
from benchmarks.chaos_watch import Watch
from benchmarks.server import ServerFailed
from lmcache_mp.messages import Clear, RegisterNamespace

TICK_S = 0.005
SERVING_TIMEOUT_S = 30.0
PEER_TIMEOUT_S = 20.0
MAX_PEERS = 6


class Conductor:
    """Makes the events of a plan happen to a server and its clients."""

    def __init__(self, server: ChaosServer, crew: Crew, watch: Watch, account: Account) -> None:
        self.events: Counter[Kind] = Counter()
        self.faults: list[str] = []
        self.engine_back_s: list[float] = []
        self.server_back_s: list[float] = []
        """From the supervisor's end to the first answer of its successor's engine."""
        self._server = server
        self._crew = crew
        self._watch = watch
        self._account = account
        self._audit = auditor()
        self._killed: dict[int, float] = {}
        """When, by pid."""
        self._away_since_s: float | None = None
        self._leaving: signal.Signals | None = None
        """What the supervisor ends of, to be started again when it has."""
        self._server_ended = False
        """Whether what is away is the whole server."""
        self._stopped: tuple[int, float] | None = None
        """The engine's pid, and until when."""
        self._peers: list[subprocess.Popen[bytes]] = []
        self._asides = ThreadPoolExecutor(max_workers=1)
        """For what may wait for an engine that is stopped: audits and clears."""
        self._pending: list[Future[None]] = []

    def run(self, events: Sequence[Event], seconds: float) -> None:
        """All of it, to the end of the time."""
        began_s = time.monotonic()
        left = list(reversed(events))
        while (now_s := time.monotonic()) < began_s + seconds:
            while left and left[-1].at_s <= now_s - began_s:
                self._happen(left.pop())
            self._look_after(now_s)
            time.sleep(TICK_S)

    def settle(self) -> None:
        """Wait until the server serves, nothing is stopped and nobody misbehaves any more.

        The last to do so are peers that vanish: no engine that starts tidies up after them.
        """
        last = Event(at_s=0.0, kind=Kind.PEER_VANISHES, client=0, for_s=0.2, seed=0)
        deadline_s = time.monotonic() + SERVING_TIMEOUT_S
        while self._stopped or self._away_since_s is not None or self._watch.graves:
            self._look_after(time.monotonic())
            if time.monotonic() > deadline_s:
                self.faults.append(f"the server does not serve after {SERVING_TIMEOUT_S:g} s")
                break
            time.sleep(TICK_S)
        self._misbehave(last)
        for peer in self._peers:
            self._end_peer(peer)
        for pending in self._pending:
            pending.result()

    def audit(self) -> None:
        """Look for every promised chunk, now."""
        self._audit(self._server.run_dir.bus_address, self._account)

    def starve(self, deaths: int) -> None:
        """Before L1 has memory: have so many clients die while their stores wait for it."""
        populator = self._server.starve()
        if populator is None:
            self.faults.append("the process that populates L1 was not seen")
            return
        kind = Kind.CLIENT_DIES_WAITING
        for seed in range(deaths):
            self._misbehave(Event(at_s=0.0, kind=kind, client=0, for_s=0.0, seed=seed))
        for peer in self._peers:
            self.events[kind] += peer.wait(PEER_TIMEOUT_S) == -signal.SIGKILL
        self._peers.clear()
        self._server.signal(populator, signal.SIGCONT)

    def kill_engine(self) -> bool:
        """kill -9; whether there was one."""
        pid = self._server.pid_of(ENGINE)
        if (
            self._leaving is not None
            or pid is None
            or pid in self._killed
            or not self._server.signal(pid, signal.SIGKILL)
        ):
            return False
        self._killed[pid] = time.monotonic()
        self._away_since_s = self._killed[pid]
        self._stopped = None
        self._watch.disturbed()
        return True

    def close(self) -> None:
        """End whatever was started."""
        self._resume_engine()
        for peer in self._peers:
            peer.kill()
            peer.wait()
        self._asides.shutdown()

    def _happen(self, event: Event) -> None:
        if event.kind in PEERS:
            happened = self._misbehave(event)
        elif event.kind == Kind.CLIENT_KILLED:
            self._crew.kill(event.client)
            happened = False  # counted when it is dead
        elif event.kind in CLIENT_DEATHS:
            self._crew.order_death(event.client, event.kind)
            happened = False
        elif event.kind == Kind.CLIENT_STOPPED:
            happened = self._crew.stop(event.client, event.for_s)
        elif event.kind == Kind.ENGINE_KILLED:
            happened = self.kill_engine()
        elif event.kind == Kind.ENGINE_STOPPED:
            happened = self._stop_engine(event.for_s)
        elif event.kind == Kind.SUPERVISOR_KILLED:
            happened = self._end_server(signal.SIGKILL)
        elif event.kind == Kind.SERVER_UPGRADED:
            happened = self._end_server(signal.SIGTERM)
        elif event.kind == Kind.HTTP_KILLED:
            pid = self._server.pid_of(HTTP)
            happened = pid is not None and self._server.signal(pid, signal.SIGKILL)
        else:
            self._pending.append(self._asides.submit(self._clear))
            happened = True
        self.events[event.kind] += happened

    def _look_after(self, now_s: float) -> None:
        if self._stopped is not None and now_s >= self._stopped[1]:
            self._resume_engine()
        for death in self._crew.look_after(now_s):
            self.events[death.kind] += 1
            self._watch.bury(death)
        self._notice_return()
        self._peers = [peer for peer in self._peers if not self._has_ended(peer)]
        if self._server.process.poll() is not None:
            self._start_again(self._server.process.returncode)

    def _notice_return(self) -> None:
        if self._away_since_s is None:
            return
        served = {
            at_s for pid, at_s in self._watch.seen.served_since.items() if pid not in self._killed
        }
        back = [at_s for at_s in served if at_s > self._away_since_s]
        if back and self._leaving is None:
            times = self.server_back_s if self._server_ended else self.engine_back_s
            times.append(min(back) - self._away_since_s)
            self._away_since_s = None
            self._server_ended = False
            self._pending.append(self._asides.submit(self.audit))

    def _end_server(self, number: signal.Signals) -> bool:
        """Have the supervisor end; `_look_after` starts another when it has."""
        if self._leaving is not None or self._away_since_s is not None:
            return False
        self._resume_engine()
        if (engine := self._server.pid_of(ENGINE)) is not None:
            self._killed[engine] = time.monotonic()
        self._leaving, self._server_ended = number, True
        self._away_since_s = time.monotonic()
        self._watch.disturbed()
        self._server.process.send_signal(number)
        return True

    def _start_again(self, code: int) -> None:
        if self._leaving is None:
            raise ServerFailed(f"the supervisor ended with {code}")
        if code != (0 if self._leaving == signal.SIGTERM else -self._leaving):
            self.faults.append(f"told to stop, the supervisor ended with {code}")
        self._leaving = None
        self._server.start()

    def _resume_engine(self) -> None:
        if self._stopped is not None:
            self._server.signal(self._stopped[0], signal.SIGCONT)
            self._stopped = None

    def _stop_engine(self, for_s: float) -> bool:
        pid = self._server.pid_of(ENGINE)
        if pid is None or self._stopped is not None or self._away_since_s is not None:
            return False
        self._watch.disturbed()
        self._stopped = (pid, time.monotonic() + for_s)
        return self._server.signal(pid, signal.SIGSTOP)

    def _misbehave(self, event: Event) -> bool:
        if len(self._peers) >= MAX_PEERS:  # the machine is slow: they are not to be its whole load
            return False
        command = [sys.executable, "-m", "benchmarks.chaos_peers", event.kind]
        where = [str(self._server.run_dir.path), self._server.tcp]
        how = [str(event.seed), str(event.for_s)]
        self._peers.append(subprocess.Popen([*command, *where, *how]))
        return True

    def _has_ended(self, peer: subprocess.Popen[bytes]) -> bool:
        code = peer.poll()
        if code:
            self.faults.append(f"a peer ended with {code}; see its traceback above")
        return code is not None

    def _end_peer(self, peer: subprocess.Popen[bytes]) -> None:
        try:
            peer.wait(PEER_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            peer.kill()
            self.faults.append("a peer did not end by itself")
        else:
            self._has_ended(peer)

    def _clear(self) -> None:
        for place, namespace in enumerate(NAMESPACES):
            from_s = time.monotonic()
            in_flight_s = 0.0
            try:
                with bus.Client(self._server.run_dir.bus_address) as client:
                    registered = client.call(RegisterNamespace(namespace=namespace), 10.0)
                    client.call(Clear(namespace_id=registered.namespace_id), 10.0)
            except bus.BusError:
                in_flight_s = IN_FLIGHT_S
            self._account.cleared(place, from_s, time.monotonic() + in_flight_s)
