"""The client processes of a chaos run: started, killed, stopped, and replaced."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import msgspec

from benchmarks.chaos_account import Account, Witness
from benchmarks.chaos_client import END
from benchmarks.chaos_log import decode_line
from benchmarks.chaos_plan import Kind

END_TIMEOUT_S = 20.0


@dataclass(slots=True)
class Member:
    """One client process."""

    process: subprocess.Popen[bytes]
    witness: Witness
    reader: threading.Thread
    killed_s: float | None = None
    stopped_s: float | None = None
    resume_at_s: float = 0.0

    def tell(self, order: str) -> None:
        """Give it an order, which it follows after its present request."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: that is noticed elsewhere
            self.process.stdin.write(order.encode() + b"\n")
            self.process.stdin.flush()


@dataclass(frozen=True, slots=True)
class Death:
    """A client that was killed, or killed itself."""

    pid: int
    kind: Kind
    at_s: float
    witness: Witness


class Crew:
    """So many clients at any time. For one thread, apart from those that read what they say."""

    def __init__(self, address: str, seed: int, account: Account) -> None:
        self.faults: list[str] = []
        self._address = address
        self._account = account
        self._rng = random.Random(seed)
        self._started = 0
        self.members: list[Member] = []

    def join(self, size: int) -> None:
        """So many begin to work."""
        self.members += [self._start() for _ in range(size)]

    def kill(self, index: int) -> None:
        """kill -9, wherever it is."""
        member = self.members[index]
        if member.killed_s is None:
            member.killed_s = time.monotonic()
            member.process.kill()

    def order_death(self, index: int, how: Kind) -> None:
        """Have it kill itself at a certain point."""
        self.members[index].tell(how)

    def stop(self, index: int, for_s: float) -> bool:
        """SIGSTOP for a while; whether it was running."""
        member = self.members[index]
        if member.stopped_s is not None or member.process.poll() is not None:
            return False
        member.process.send_signal(signal.SIGSTOP)
        member.stopped_s = time.monotonic()
        member.resume_at_s = member.stopped_s + for_s
        return True

    def look_after(self, now_s: float) -> list[Death]:
        """Resume who was stopped long enough, and replace the dead, who are returned."""
        deaths = []
        for index, member in enumerate(self.members):
            if member.stopped_s is not None and now_s >= member.resume_at_s:
                self._resume(member)
            if member.process.poll() is not None:
                deaths.append(self._bury(member))
                self.members[index] = self._start()
        return deaths

    def end(self) -> None:
        """Have all of them end well."""
        for member in self.members:
            if member.stopped_s is not None:
                self._resume(member)
            member.tell(END)
        deadline_s = time.monotonic() + END_TIMEOUT_S
        for member in self.members:
            try:
                member.process.wait(max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.faults.append(f"{member.witness.name} did not end when told to")
                member.process.kill()
            self._bury(member)
        self.members = []

    def abandon(self) -> None:
        """Kill whoever is left."""
        for member in self.members:
            member.process.kill()
            member.killed_s = time.monotonic()
            self._bury(member)
        self.members = []

    def _start(self) -> Member:
        self._started += 1
        name = f"client {self._started}"
        command = [sys.executable, "-m", "benchmarks.chaos_client"]
        process = subprocess.Popen(
            [*command, self._address, name, str(self._rng.getrandbits(32))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        witness = self._account.witness(name)
        reader = threading.Thread(target=self._read, args=(process, witness), name=name)
        reader.start()
        return Member(process, witness, reader)

    def _bury(self, member: Member) -> Death:
        code = member.process.wait()
        if code not in (0, -signal.SIGKILL):
            self.faults.append(f"{member.witness.name} ended with {code}; see its traceback above")
        if member.stopped_s is not None:
            member.witness.stops.append((member.stopped_s, time.monotonic()))
        member.reader.join()
        words = member.witness.last_words
        at_s = words.at_s if words is not None else member.killed_s or time.monotonic()
        self._account.gone(member.witness, at_s)
        for pipe in (member.process.stdin, member.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # an order that it did not live to hear
                pipe.close()
        kind = words.how if words is not None else Kind.CLIENT_KILLED
        return Death(member.process.pid, kind, at_s, member.witness)

    def _resume(self, member: Member) -> None:
        assert member.stopped_s is not None
        member.process.send_signal(signal.SIGCONT)
        member.witness.stops.append((member.stopped_s, time.monotonic()))
        member.stopped_s = None

    def _read(self, process: subprocess.Popen[bytes], witness: Witness) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                said = decode_line(line)
            except msgspec.DecodeError:
                if line.endswith(b"\n"):
                    self.faults.append(f"{witness.name} said {line[:100]!r}")
                continue  # it was killed in the middle of a line
            self._account.take(witness, said)
