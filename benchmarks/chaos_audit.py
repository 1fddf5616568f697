"""What must hold of a server: every promised chunk is there, and when all is quiet nothing is left.

Leaks and faults are sentences; none is good.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

import bus
from benchmarks.chaos_account import Account
from benchmarks.chaos_prompts import NAMESPACES, SHARD_BYTES, all_prompts
from benchmarks.chaos_server import ChaosServer
from benchmarks.chaos_work import Rank
from benchmarks.chunk_bytes import ChunkBytes
from benchmarks.hot_path.processes import private_mb
from benchmarks.server import status
from lmcache_mp.messages import Check, StatusReport

QUIET_TIMEOUT_S = 10.0
STEADY_S = 2.0
FEW_DESCRIPTORS = 2
"""A descriptor more or less says nothing."""
MUCH_MEMORY_MB = 32.0
"""So much more than a new engine, one that worked for a while has not."""


def audit(address: str, account: Account, chunk_bytes: ChunkBytes) -> None:
    """Retrieve every prompt, and tell the account what is missing or wrong."""
    witness = account.witness("auditor")
    for place, namespace in enumerate(NAMESPACES):
        for shard in range(namespace.num_shards):
            rank = Rank(address, place, shard, "auditor", lambda line: account.take(witness, line))
            for where, keys in all_prompts():
                if where == place:
                    with rank.retrieve(keys) as hit:
                        rank.verify(hit, keys, chunk_bytes, "audit")
            witness.tally.verified_bytes += rank.tally.verified_bytes
            rank.cache.close()


def auditor() -> Callable[[str, Account], None]:
    """`audit` with bytes to compare with."""
    chunk_bytes = ChunkBytes(SHARD_BYTES)
    return lambda address, account: audit(address, account, chunk_bytes)


def leaks_when_quiet(server: ChaosServer) -> list[str]:
    """What is held by nobody, once all clients are gone."""
    deadline_s = time.monotonic() + QUIET_TIMEOUT_S
    while True:
        found = _leaks(server, status(server.run_dir))
        if not found or time.monotonic() > deadline_s:
            return found
        time.sleep(0.1)


def _leaks(server: ChaosServer, report: StatusReport) -> list[str]:
    found = [f"{c.who} pid={c.pid} is still a client" for c in report.clients]
    if report.l1.leased_chunks:
        found.append(f"{report.l1.leased_chunks} chunks are leased")
    if files := list(server.run_dir.clients.iterdir()):
        found.append(f"{len(files)} files are left in the run directory, {files[0].name} for one")
    slots = {namespace.model: namespace.chunk_bytes for namespace in NAMESPACES}
    expected = sum(n.ready_chunks * slots[n.namespace.model] for n in report.namespaces)
    expected += report.l1.incomplete_chunks * NAMESPACES[-1].chunk_bytes  # one rank's, for the rest
    if report.l1.used_bytes != expected:
        found.append(f"{report.l1.used_bytes} bytes are used, chunks have {expected}")
    return found


def broken_invariants(server: ChaosServer) -> list[str]:
    """The engine's own check."""
    with bus.Client(server.run_dir.bus_address) as client:
        return client.call(Check(), 30.0).faults


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """What an old engine has and one that has just started has not, both of them quiet."""

    descriptors: int
    memory_mb: float
    """Of its own; mapped files of L1 are not counted."""
    kinds: list[str]
    """Of the descriptors, those of which the old one has more, and how many."""

    @classmethod
    def between(cls, old: EngineState, new: EngineState) -> Growth:
        """From the one to the other."""
        return cls(
            descriptors=len(old.descriptors) - len(new.descriptors),
            memory_mb=round(old.memory_mb - new.memory_mb, 1),
            kinds=[f"{n} x {kind}" for kind, n in (_kinds(old) - _kinds(new)).items()],
        )

    def leaks(self) -> list[str]:
        """What of it is too much."""
        found = []
        if self.descriptors > FEW_DESCRIPTORS:
            found.append(
                f"the engine has {self.descriptors} more descriptors open than a new one:"
                f" {', '.join(self.kinds)}"
            )
        if self.memory_mb > MUCH_MEMORY_MB:
            found.append(f"the engine has {self.memory_mb} MB more memory than a new one")
        return found


@dataclass(frozen=True, slots=True)
class EngineState:
    """What an engine process has at some moment."""

    descriptors: list[str]
    memory_mb: float

    @classmethod
    def of(cls, server: ChaosServer, pid: int) -> EngineState:
        """Now."""
        return cls(server.descriptors(pid), private_mb(pid))

    @classmethod
    def settled(cls, server: ChaosServer, pid: int) -> EngineState:
        """Once it loses no more descriptors: what has just ended it lets go of within seconds."""
        deadline_s = time.monotonic() + QUIET_TIMEOUT_S
        state, since_s = cls.of(server, pid), time.monotonic()
        while time.monotonic() < min(deadline_s, since_s + STEADY_S):
            time.sleep(0.1)
            now = cls.of(server, pid)
            if len(now.descriptors) < len(state.descriptors):
                state, since_s = now, time.monotonic()
        return state

    def watched(self, server: ChaosServer) -> list[str]:
        """Leaks: descriptors of clients' files, where there are no clients."""
        clients = str(server.run_dir.clients)
        return [f"the engine has open: {name}" for name in self.descriptors if clients in name]


def _kinds(state: EngineState) -> Counter[str]:
    """Descriptors by what they lead to; sockets by no more than that."""
    return Counter(name.partition(":[")[0] for name in state.descriptors)


def settled_growth(server: ChaosServer, old: EngineState, pid: int) -> Growth:
    """Beside a new engine's state once the server's other processes have found it."""
    deadline_s = time.monotonic() + QUIET_TIMEOUT_S
    while True:
        growth = Growth.between(old, EngineState.of(server, pid))
        if not growth.leaks() or time.monotonic() > deadline_s:
            return growth
        time.sleep(0.1)
