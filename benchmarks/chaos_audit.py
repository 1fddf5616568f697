"""What must hold of a server: every promised chunk is there, and when all is quiet nothing is left.

Leaks and faults are sentences; none is good.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import bus
from benchmarks.chaos_account import Account
from benchmarks.chaos_prompts import NAMESPACES, SHARD_BYTES, all_prompts
from benchmarks.chaos_server import ChaosServer
from benchmarks.chaos_work import Rank
from benchmarks.chunk_bytes import ChunkBytes
from benchmarks.server import status
from lmcache_mp.messages import Check, StatusReport

QUIET_TIMEOUT_S = 10.0
FEW_DESCRIPTORS = 2
"""A descriptor more or less says nothing."""


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


def grown_descriptors(server: ChaosServer, old: list[str], new: list[str]) -> list[str]:
    """What an old engine has open and one that has just started has not, both of them quiet."""
    clients = str(server.run_dir.clients)
    found = [f"the engine has open: {name}" for name in old if name.startswith(clients)]
    if len(old) > len(new) + FEW_DESCRIPTORS:
        found.append(f"the engine has {len(old)} descriptors open, a new one {len(new)}")
    return found
