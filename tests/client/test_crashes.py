"""A client that dies, is stopped, or forks: at whichever moment, what it held comes back, what it
wrote is never seen, and what it still may use is not given away.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import psutil
import pytest

import bus
from lmcache_mp import messages as m
from lmcache_mp.client import CacheClient, ChunkKeys, Namespace, chunk_keys
from lmcache_mp.client.deadline import Deadline
from lmcache_mp.l1.reservations import UNFINISHED_PROTECTION_S
from lmcache_mp.liveness import LifeLine
from lmcache_mp.rundir import boot_id
from tests.waiting import wait_until
from tests.world import NAMESPACE, EngineProcess

SHARD = NAMESPACE.shard_bytes
L1_CHUNKS = (16 << 20) // SHARD
RANKS = Namespace(model="tp", dtype="u8", chunk_tokens=4, shard_bytes=SHARD // 2, num_shards=2)


def content(keys: ChunkKeys, index: int, shard: int, length: int = SHARD) -> bytes:
    return (keys[index] + bytes([shard])).ljust(64, b"#") * (length // 64)


def fill(cache: CacheClient, keys: ChunkKeys) -> int:
    length = cache.namespace.shard_bytes
    with cache.store(keys) as batch:
        for index, view in batch.slots():
            view[:] = content(keys, index, cache.shard, length)
    return batch.committed_chunks


def read(cache: CacheClient, keys: ChunkKeys) -> int:
    length = cache.namespace.shard_bytes
    with cache.retrieve(keys) as hit:
        for index, view in hit.slots():
            assert view == content(keys, index, cache.shard, length)
        return hit.chunks


@contextlib.contextmanager
def child(life: Callable[[], object]) -> Iterator[int]:
    """A process that does this and then stops; killed at the end."""
    pid = os.fork()
    if pid == 0:
        try:
            life()
            _stop()
        finally:
            os._exit(1)
    try:
        _, status = os.waitpid(pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"it ended with {status}"
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):  # killed already
            kill(pid)


def _stop() -> NoReturn:
    os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(0)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_what_a_dead_client_read_or_pinned_can_be_evicted_again(engine: EngineProcess) -> None:
    with engine.client() as cache:
        keys = cache.chunk_keys(range(4 * 6))
        fill(cache, keys)
        everything_else = cache.chunk_keys(range(1000, 1000 + 4 * L1_CHUNKS))

        held: list[object] = []

        def life() -> None:
            mine = engine.client()
            held.extend([mine, mine.begin_retrieve(keys.first(4)), mine.pin(keys)])

        with child(life) as pid:
            assert engine.status().l1.leased_chunks == 4 + 6
            fill(cache, everything_else)
            assert read(cache, keys) == 6
            kill(pid)
            wait_until(lambda: engine.status().l1.leased_chunks == 0)
        fill(cache, cache.chunk_keys(range(9000, 9000 + 4 * L1_CHUNKS)))
        assert cache.lookup(keys).hit_chunks == 0


def test_slots_that_a_client_died_on_half_way_through_serve_the_next_one_well(
    engine: EngineProcess,
) -> None:
    with engine.client() as cache:
        keys = cache.chunk_keys(range(4 * L1_CHUNKS))

        def life() -> None:
            batch = engine.client().begin_store(keys)
            for index, view in batch.slots():
                view[: SHARD // 2] = b"\xdd" * (SHARD // 2)
                if index == L1_CHUNKS // 2:
                    break
            held.append(batch)

        held: list[object] = []
        with child(life) as pid:
            assert fill(cache, keys) == 0  # all of L1 is reserved
            kill(pid)
            assert read(cache, keys) == 0
            wait_until(lambda: fill(cache, keys))
        wait_until(lambda: fill(cache, keys) == 0)
        assert read(cache, keys) == L1_CHUNKS


@pytest.fixture
def starved(start_engine: Callable[..., EngineProcess]) -> Iterator[tuple[EngineProcess, int]]:
    """An engine whose L1 has no memory yet, and the pid of its stopped helper process."""
    engine = start_engine(keep_l1=False)
    while True:
        engine.kill()
        engine.start(populated=False)
        assert engine.process is not None
        (helper,) = wait_until(psutil.Process(engine.process.pid).children)
        helper.suspend()
        wait_until(lambda: helper.status() == psutil.STATUS_STOPPED)  # noqa: B023
        if engine.status().l1.populated_bytes == 0:
            break
    yield engine, helper.pid
    with contextlib.suppress(psutil.NoSuchProcess):
        helper.resume()


@pytest.mark.parametrize("noticed", [True, False])
def test_a_client_that_dies_while_its_store_waits_for_memory_leaves_nothing(
    noticed: bool, starved: tuple[EngineProcess, int]
) -> None:
    engine, helper = starved
    with engine.client() as cache:
        keys = cache.chunk_keys(range(4 * 8))

        def life() -> None:
            mine = engine.client()
            link = mine._session.link(Deadline(5))
            lease_id = mine._session.new_lease_id()
            request = m.PrepareStore(link.namespace_id, keys.buffer)
            waiting = link.client.start(request, lease_id)
            mine.lookup(keys)  # answered after the engine has seen the store
            assert not waiting.done()
            held.extend([mine, waiting])

        held: list[object] = []
        with child(life) as pid:
            assert len(engine.status().clients) == 2
            kill(pid)
            if noticed:
                wait_until(lambda: len(engine.status().clients) == 1)
            os.kill(helper, signal.SIGCONT)
            wait_until(lambda: engine.status().l1.populated_bytes == engine.config.l1_size)
            wait_until(lambda: fill(cache, keys) == len(keys))
        assert read(cache, keys) == len(keys)
        wait_until(lambda: len(engine.status().clients) == 1)
        assert engine.status().l1.leased_chunks == 0
        assert engine.status().l1.used_bytes == len(keys) * SHARD


def test_a_stopped_client_keeps_its_slots_under_pressure_and_commits_when_it_goes_on(
    engine: EngineProcess,
) -> None:
    """Longer than any grace or protection there is."""
    with engine.client(RANKS) as one, engine.client() as pressing:
        keys = one.chunk_keys(range(4 * 5))
        fill(one, keys)

        def life() -> None:
            two = engine.client(RANKS, shard=1)
            with two.store(keys) as batch:
                for index, view in batch.slots():
                    view[:100] = content(keys, index, 1, SHARD // 2)[:100]
                    if index == 2:
                        os.kill(os.getpid(), signal.SIGSTOP)
                    view[:] = content(keys, index, 1, SHARD // 2)
            assert batch.committed_chunks == 5

        with child(life) as pid:
            since_s, number = time.monotonic(), 0
            while time.monotonic() < since_s + UNFINISHED_PROTECTION_S + 1:
                number += 1
                some = pressing.chunk_keys(range(4 * L1_CHUNKS), salt=f"{number}")
                assert L1_CHUNKS - 8 <= fill(pressing, some) < L1_CHUNKS
            assert one.lookup(keys).hit_chunks == 0
            os.kill(pid, signal.SIGCONT)
            _, status = os.waitpid(pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status), f"it ended with {status}"
            assert read(one, keys) == 5
            with engine.client(RANKS, shard=1) as two:
                assert read(two, keys) == 5


def test_a_forked_childs_death_ends_nothing_of_its_parents(engine: EngineProcess) -> None:
    with engine.client(fail_open=True) as cache:
        keys, more = cache.chunk_keys(range(4 * 3)), cache.chunk_keys(range(100, 100 + 4 * 3))
        fill(cache, keys)
        answers, tell = os.pipe()
        with cache.retrieve(keys) as hit, cache.store(more) as batch:

            def life() -> None:
                found = cache.lookup(keys).hit_chunks + len(cache.begin_store(more))
                os.write(tell, b"%d %d" % (found, batch.commit()))

            with child(life) as pid:
                assert os.read(answers, 9) == b"0 0"
                kill(pid)
            seen = engine.status().uptime_s
            wait_until(lambda: engine.status().uptime_s > seen + 1.5)  # beyond the dead's grace
            assert engine.status().l1.leased_chunks == 6
            for index, view in batch.slots():
                view[:] = content(more, index, 0)
            assert [index for index, _ in hit.slots()] == [0, 1, 2]
        os.close(answers)
        os.close(tell)
        assert batch.committed_chunks == 3
        assert read(cache, more) == 3


def test_a_parents_death_ends_its_leases_although_its_forked_child_lives(
    engine: EngineProcess,
) -> None:
    told, tell = os.pipe()

    def life() -> None:
        mine = engine.client()
        keys = mine.chunk_keys(range(4 * 4))
        fill(mine, keys.first(2))
        held.extend([mine, mine.begin_retrieve(keys), mine.begin_store(keys)])
        if (grandchild := os.fork()) == 0:
            signal.pause()
        os.write(tell, b"%d" % grandchild)

    held: list[object] = []
    with child(life) as pid:
        grandchild = int(os.read(told, 9))
        os.close(told)
        os.close(tell)
        assert engine.status().l1.leased_chunks == 4
        try:
            kill(pid)
            wait_until(lambda: engine.status().l1.leased_chunks == 0)
            assert psutil.Process(grandchild).status() != psutil.STATUS_ZOMBIE
        finally:
            os.kill(grandchild, signal.SIGKILL)
    assert engine.status().clients == []
    wait_until(lambda: engine.status().l1.used_bytes == 2 * SHARD)


def test_thousands_that_connect_and_die_leave_no_trace(engine: EngineProcess) -> None:
    assert engine.process is not None
    process = psutil.Process(engine.process.pid)
    keys = chunk_keys(NAMESPACE, range(4 * 4))

    def deaths(count: int) -> None:
        for number in range(count):
            line = LifeLine.create(engine.run_dir.clients)
            with bus.Client(engine.address) as client:
                hello = m.Hello(
                    who="mayfly",
                    pid=os.getpid(),
                    client_id=line.client_id,
                    lock_inode=line.inode,
                    boot_id=boot_id(),
                )
                client.call(hello)
                space = client.call(m.RegisterNamespace(namespace=NAMESPACE)).namespace_id
                if number % 2:
                    client.call(m.PrepareStore(space, keys.buffer))
                    client.call(m.Lookup(space, keys.buffer, 5.0))
            line.close()
        wait_until(lambda: not list(engine.run_dir.clients.iterdir()))
        wait_until(lambda: engine.status().l1.used_bytes == 0)

    deaths(500)
    descriptors, memory = process.num_fds(), process.memory_full_info().uss
    deaths(1500)
    wait_until(lambda: process.num_fds() <= descriptors)
    assert process.memory_full_info().uss - memory < 2 << 20
    assert engine.status().clients == []
