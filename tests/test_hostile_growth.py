"""Clients by the thousand that come, take a lease and die leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import bus
from lmcache_mp import messages as m
from lmcache_mp.liveness import LifeLine
from lmcache_mp.rundir import boot_id
from tests.footprint import Footprint
from tests.waiting import wait_until
from tests.world import NAMESPACE, EngineProcess

CYCLES = 2000
KILLED = 24
GROWTH_BYTES = 4 << 20


def come_and_go(engine: EngineProcess, number: int) -> None:
    """What is left of a client that was killed: no goodbye, a lock that is gone."""
    line = LifeLine.create(engine.run_dir.clients)
    with bus.Client(engine.address) as client:
        hello = m.Hello(
            who=f"doomed {number}",
            pid=os.getpid(),
            client_id=line.client_id,
            lock_inode=line.inode,
            boot_id=boot_id(),
        )
        assert client.call(hello).may_lease
        place = client.call(m.RegisterNamespace(namespace=NAMESPACE)).namespace_id
        key = number.to_bytes(32, "big")
        granted = client.call(m.PrepareStore(place, key))
        assert granted.no_room_chunks == 1 - len(granted.slots) // 4
        client.call(m.Lookup(place, key, hold_s=600.0))
    line.close()


def footprint(engine: EngineProcess) -> Footprint:
    assert engine.process is not None
    return Footprint.of(engine.process.pid, engine.run_dir.clients)


def all_gone(engine: EngineProcess) -> bool:
    status = engine.status()
    return not status.clients and not status.l1.leased_chunks and not status.l1.incomplete_chunks


def test_thousands_that_die_with_a_lease_leave_no_growth(
    start_engine: Callable[..., EngineProcess],
) -> None:
    engine = start_engine(log_level="error")
    for number in range(CYCLES // 10):
        come_and_go(engine, number)
    wait_until(lambda: all_gone(engine))
    before = footprint(engine)
    for number in range(CYCLES):
        come_and_go(engine, number)
    wait_until(lambda: all_gone(engine))
    wait_until(lambda: footprint(engine).descriptors <= before.descriptors)
    wait_until(lambda: footprint(engine).client_files == 0)
    after = footprint(engine)
    assert after.private_bytes < before.private_bytes + GROWTH_BYTES


def test_processes_that_are_killed_with_a_lease_leave_no_growth(engine: EngineProcess) -> None:
    before = footprint(engine)
    for _ in range(KILLED // 8):
        doomed = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.doomed", engine.address],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for _ in range(8)
        ]
        for process in doomed:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"leased")
        assert len(engine.status().clients) == len(doomed)
        for process in doomed:
            process.kill()
            process.communicate()
        wait_until(lambda: all_gone(engine))
    wait_until(lambda: footprint(engine).descriptors <= before.descriptors + 1)
    after = footprint(engine)
    assert after.client_files == 0
    assert after.private_bytes < before.private_bytes + GROWTH_BYTES
