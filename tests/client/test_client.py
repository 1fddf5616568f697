from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from array import array
from collections.abc import Callable

import pytest

import bus
from lmcache_mp import messages as m
from lmcache_mp.client import CacheClient, ChunkKeys, Namespace
from lmcache_mp.client.deadline import Deadline
from lmcache_mp.client.mapping import Mapping
from lmcache_mp.errors import (
    BadKeys,
    BadShard,
    ChunkTooLarge,
    LeaseNotFound,
    NamespaceConflict,
    NotRegistered,
)
from lmcache_mp.liveness import LifeLine
from lmcache_mp.rundir import boot_id
from tests.waiting import wait_until
from tests.world import NAMESPACE, EngineProcess, short_directory

SHARD = NAMESPACE.shard_bytes


def prompt(first: int, chunks: int) -> array[int]:
    return array("I", range(first, first + chunks * NAMESPACE.chunk_tokens))


def content(keys: ChunkKeys, index: int, shard: int = 0) -> bytes:
    return (keys[index] + bytes([shard])).ljust(64, b"#") * (SHARD // 64)


def fill(cache: CacheClient, keys: ChunkKeys) -> int:
    with cache.store(keys) as batch:
        for index, view in batch.slots():
            view[:] = content(keys, index, cache.shard)
    return batch.committed_chunks


def read(cache: CacheClient, keys: ChunkKeys) -> int:
    with cache.retrieve(keys) as hit:
        for index, view in hit.slots():
            assert view == content(keys, index, cache.shard)
        return hit.chunks


def test_what_was_stored_comes_back_byte_for_byte(engine: EngineProcess) -> None:
    with engine.client() as cache:
        keys = cache.chunk_keys(prompt(0, 5))
        assert cache.lookup(keys).hit_chunks == 0
        assert fill(cache, keys) == 5
        assert cache.lookup(keys).hit_chunks == 5
        assert read(cache, keys) == 5
        longer = cache.chunk_keys(prompt(0, 7))
        assert read(cache, longer) == 5
        with cache.store(longer) as batch:
            assert batch.indices == [5, 6]
            for index, view in batch.slots():
                view[:] = content(longer, index)
        assert read(cache, longer) == 7


def test_another_client_sees_it_and_another_salt_does_not(engine: EngineProcess) -> None:
    with engine.client() as writer, engine.client() as reader:
        fill(writer, writer.chunk_keys(prompt(0, 3), salt="ours"))
        assert read(reader, reader.chunk_keys(prompt(0, 3), salt="ours")) == 3
        assert read(reader, reader.chunk_keys(prompt(0, 3), salt="theirs")) == 0


def test_slots_not_handed_out_are_aborted(engine: EngineProcess) -> None:
    with engine.client() as cache:
        keys = cache.chunk_keys(prompt(0, 4))
        with cache.store(keys) as batch:
            for index, view in batch.slots():
                view[:] = content(keys, index)
                if index == 1:
                    break
        assert batch.committed_chunks == 2
        assert read(cache, keys) == 2


def test_an_exception_aborts_the_store(engine: EngineProcess) -> None:
    with engine.client() as cache:
        keys = cache.chunk_keys(prompt(0, 2))

        def fail_in_the_middle() -> None:
            with cache.store(keys) as batch:
                for _, view in batch.slots():
                    view[:] = bytes(SHARD)
                    raise RuntimeError

        with pytest.raises(RuntimeError):
            fail_in_the_middle()
        assert cache.lookup(keys).hit_chunks == 0
    assert engine.status().l1.used_bytes == 0


def test_views_end_with_their_block_and_hits_are_read_only(engine: EngineProcess) -> None:
    with engine.client() as cache:
        keys = cache.chunk_keys(prompt(0, 1))
        fill(cache, keys)
        with cache.retrieve(keys) as hit:
            ((_, view),) = hit.slots()
            assert view.readonly
        with pytest.raises(ValueError, match="released"):
            view[0]


def test_copies_that_end_later_commit_and_release_in_two_steps(engine: EngineProcess) -> None:
    with engine.client() as cache:
        keys = cache.chunk_keys(prompt(0, 2))
        batch = cache.begin_store(keys)
        for index, view in batch.slots():
            view[:] = content(keys, index)
        assert cache.lookup(keys).hit_chunks == 0
        assert batch.commit() == 2
        hit = cache.begin_retrieve(keys)
        assert [index for index, _ in hit.slots()] == [0, 1]
        assert engine.status().l1.leased_chunks == 2
        hit.release()
        wait_until(lambda: engine.status().l1.leased_chunks == 0)


def test_ranks_are_shards_of_one_chunk(engine: EngineProcess) -> None:
    space = Namespace(model="tp", dtype="u8", chunk_tokens=4, shard_bytes=SHARD, num_shards=2)
    with engine.client(space) as one, engine.client(space, shard=1) as two:
        keys = one.chunk_keys(prompt(0, 3))
        assert fill(one, keys) == 3
        assert two.lookup(keys).hit_chunks == 0
        assert fill(two, keys) == 3
        assert read(one, keys) == read(two, keys) == 3


def test_a_prompt_shorter_than_a_chunk_is_a_valid_empty_answer(engine: EngineProcess) -> None:
    with engine.client() as cache:
        keys = cache.chunk_keys([1, 2, 3])
        assert cache.lookup(keys).hit_chunks == 0
        assert fill(cache, keys) == 0
        assert read(cache, keys) == 0


def test_a_pin_keeps_chunks_in_a_full_cache_until_it_is_released(engine: EngineProcess) -> None:
    capacity = engine.config.l1_size // SHARD  # type: ignore[operator]
    with engine.client() as cache:
        keys = cache.chunk_keys(prompt(0, 2))
        fill(cache, keys)
        with cache.pin(keys) as pin:
            assert pin.chunks == 2
            fill(cache, cache.chunk_keys(prompt(10_000, capacity)))
            assert read(cache, keys) == 2
        fill(cache, cache.chunk_keys(prompt(20_000, capacity)))
        assert cache.lookup(keys).hit_chunks == 0
        assert engine.status().counters.evicted_chunks > 0


def test_every_thread_has_a_connection_of_its_own(engine: EngineProcess) -> None:
    with engine.client() as cache:
        done: list[int] = []

        def work(number: int) -> None:
            keys = cache.chunk_keys(prompt(number * 1000, 3))
            fill(cache, keys)
            done.append(read(cache, keys))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert done == [3] * 4
        assert engine.status().clients[0].connections == 4 + 1


def test_clear_and_delete_are_seen_by_all(engine: EngineProcess) -> None:
    with engine.client() as cache, engine.client() as other:
        keys = cache.chunk_keys(prompt(0, 4))
        fill(cache, keys)
        assert cache.delete(keys.first(1)) == 1
        assert other.lookup(keys).hit_chunks == 0
        assert fill(cache, keys) == 1
        with cache.retrieve(keys) as hit:
            assert other.clear() == 4
            assert other.lookup(keys).hit_chunks == 0
            for index, view in hit.slots():
                assert view == content(keys, index)


def test_what_is_reserved_while_the_cache_is_cleared_is_refused_at_commit(
    engine: EngineProcess,
) -> None:
    with engine.client() as cache:
        keys = cache.chunk_keys(prompt(0, 2))
        with cache.store(keys) as batch:
            for index, view in batch.slots():
                view[:] = content(keys, index)
            engine.call(m.Clear())
        assert batch.committed_chunks == 0
        assert cache.lookup(keys).hit_chunks == 0


def test_a_server_that_is_not_there_is_a_miss_and_no_exception() -> None:
    with short_directory() as path:
        address = f"ipc://{path}/bus.sock"
        with CacheClient.connect(address, NAMESPACE) as cache:
            keys = cache.chunk_keys(prompt(0, 2))
            assert cache.lookup(keys).hit_chunks == 0
            assert fill(cache, keys) == 0
            assert read(cache, keys) == 0
            assert cache.counters.failures == {"connect": 1, "lookup": 1, "store": 1, "retrieve": 1}
        with pytest.raises(bus.Unavailable, match="no server at"):
            CacheClient.connect(address, NAMESPACE, fail_open=False)


def test_a_killed_engine_costs_misses_and_comes_back_with_all_chunks(
    engine: EngineProcess,
) -> None:
    with engine.client(fail_open=True) as cache:
        keys = cache.chunk_keys(prompt(0, 6))
        fill(cache, keys)
        engine.kill()
        assert read(cache, keys) == 0
        assert fill(cache, cache.chunk_keys(prompt(500, 2))) == 0
        engine.start()
        assert engine.status().l1.adopted_chunks == 6
        assert wait_until(lambda: read(cache, keys)) == 6


def test_leases_outlive_the_engine_and_a_commit_reaches_its_successor(
    engine: EngineProcess,
) -> None:
    with engine.client() as cache:
        keys, more = cache.chunk_keys(prompt(0, 3)), cache.chunk_keys(prompt(900, 3))
        fill(cache, keys)
        with cache.retrieve(keys) as hit:
            with cache.store(more) as batch:
                for index, view in batch.slots():
                    view[:] = content(more, index)
                engine.kill()
                engine.start()
                assert engine.status().l1.leased_chunks == 6
            assert batch.committed_chunks == 3
            for index, view in hit.slots():
                assert view == content(keys, index)
        wait_until(lambda: engine.status().l1.leased_chunks == 0)
        assert read(cache, more) == 3


def test_a_client_that_died_with_the_engine_gets_nothing_kept(engine: EngineProcess) -> None:
    pid = os.fork()
    if pid == 0:
        cache = engine.client()
        cache.begin_store(cache.chunk_keys(prompt(0, 4)))
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    assert engine.status().l1.leased_chunks == 4
    engine.kill()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    engine.start()
    wait_until(lambda: engine.status().l1.used_bytes == 0)
    assert engine.status().clients == []


def test_a_dead_clients_slots_come_back_and_a_stopped_ones_do_not(engine: EngineProcess) -> None:
    pid = os.fork()
    if pid == 0:
        cache = engine.client()
        batch = cache.begin_store(cache.chunk_keys(prompt(0, 2)))
        next(batch.slots())[1][:] = bytes(SHARD)  # half-way through a copy
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    with engine.client() as other:
        keys = other.chunk_keys(prompt(0, 2))
        with pytest.raises(TimeoutError):
            wait_until(lambda: engine.status().l1.leased_chunks == 0, timeout_s=1.5)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        wait_until(lambda: engine.status().l1.used_bytes == 0)
        assert other.lookup(keys).hit_chunks == 0
    wait_until(lambda: not list(engine.run_dir.clients.iterdir()))


def test_a_forked_child_does_not_use_its_parents_client_or_vouch_for_its_life(
    engine: EngineProcess,
) -> None:
    cache = engine.client(fail_open=True)
    keys = cache.chunk_keys(prompt(0, 1))
    fill(cache, keys)
    cache.pin(keys)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, b"%d" % cache.lookup(keys).hit_chunks)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    assert os.read(reader, 9) == b"0"
    assert read(cache, keys) == 1
    lifeline = cache._session._lifeline
    assert lifeline is not None
    lifeline.close()  # as if this process had died; the child still lives
    wait_until(lambda: engine.status().l1.leased_chunks == 0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)
    cache.close()


def test_the_engine_refuses_bytes_to_a_client_that_cannot_prove_its_life(
    engine: EngineProcess,
) -> None:
    with short_directory() as elsewhere, bus.Client(engine.address) as client:
        lifeline = LifeLine.create(elsewhere)
        welcome = client.call(
            m.Hello(who="stranger", pid=1, client_id=lifeline.client_id, lock_inode=1)
        )
        assert not welcome.may_lease
        assert "another host" in welcome.reason
        registered = client.call(m.RegisterNamespace(namespace=NAMESPACE))
        assert client.call(m.Lookup(registered.namespace_id, bytes(32))).l1_chunks == 0
        with pytest.raises(bus.CallError, match="may not be given bytes"):
            client.call(m.PrepareStore(registered.namespace_id, bytes(32)))
        lifeline.close()


def test_bad_requests_are_answered_with_their_values(engine: EngineProcess) -> None:
    with engine.client() as cache:
        fill(cache, cache.chunk_keys(prompt(0, 1)))
        link = cache._session.link(Deadline(5))
        space = link.namespace_id
        resized = Namespace(model="test", dtype="u8", chunk_tokens=4, shard_bytes=1)
        huge = Namespace(model="huge", dtype="u8", shard_bytes=1 << 30)
        for request, error, words in [
            (m.Lookup(space, b"x" * 31), BadKeys, "31 bytes of keys"),
            (m.PrepareStore(space, bytes(32), shard=3), BadShard, "shard 3"),
            (m.PrepareStore(99, bytes(32)), NotRegistered, "namespace 99"),
            (m.CommitStore(4711), LeaseNotFound, "no lease 4711"),
            (m.RegisterNamespace(namespace=resized), NamespaceConflict, "shards of 65536 bytes"),
            (m.RegisterNamespace(namespace=huge), ChunkTooLarge, "L1 has 16777216"),
        ]:  # fmt: skip
            with pytest.raises(error, match=words):
                link.client.call(request)  # type: ignore[arg-type]
        assert read(cache, cache.chunk_keys(prompt(0, 1))) == 1


def test_a_namespace_that_the_server_refuses_is_an_error_at_connect(engine: EngineProcess) -> None:
    huge = Namespace(model="huge", dtype="u8", shard_bytes=1 << 30)
    with pytest.raises(ChunkTooLarge):
        CacheClient.connect(engine.address, huge)
    with pytest.raises(BadShard, match="shard 1 of a namespace with 1"):
        CacheClient.connect(engine.address, NAMESPACE, shard=1)
    with pytest.raises(ValueError, match="chunk_tokens"):
        CacheClient.connect(
            engine.address, Namespace(model="m", dtype="u8", chunk_tokens=0, shard_bytes=1)
        )


def test_leases_are_one_clients_own(engine: EngineProcess) -> None:
    with engine.client() as one, engine.client() as two:
        batch = one.begin_store(one.chunk_keys(prompt(0, 1)))
        link = two._session.link(Deadline(5))
        with pytest.raises(LeaseNotFound):
            link.client.call(m.CommitStore(batch._slots.lease_id))
        batch.abort()


def test_an_l1_made_anew_is_mapped_anew(start_engine: Callable[..., EngineProcess]) -> None:
    engine = start_engine(keep_l1=False)
    with engine.client(fail_open=True) as cache:
        keys = cache.chunk_keys(prompt(0, 3))
        fill(cache, keys)
        with cache.retrieve(keys) as hit:
            engine.kill()
            engine.start()
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: fill(cache, keys))
            assert read(cache, keys) == 3
            for index, view in hit.slots():  # the old one, for as long as it is held
                assert view == content(keys, index)


def test_a_batch_gone_through_twice_commits_what_was_handed_out_and_no_more(
    engine: EngineProcess,
) -> None:
    with engine.client() as cache:
        keys = cache.chunk_keys(prompt(0, 4))
        with cache.store(keys) as batch:
            for _ in range(2):
                for index, view in batch.slots():
                    view[:] = content(keys, index)
                    if index == 1:
                        break
        assert batch.committed_chunks == 2
        assert read(cache, keys) == 2


def test_a_namespace_registered_anew_with_another_size_is_no_danger_to_its_old_users(
    engine: EngineProcess,
) -> None:
    small = Namespace(model="test", dtype="u8", chunk_tokens=4, shard_bytes=4096)
    with engine.client() as old, engine.client(small) as new:
        keys = new.chunk_keys(prompt(0, 8))
        with new.store(keys) as batch:
            for index, view in batch.slots():
                view[:] = bytes([index]) * 4096
        with pytest.raises(NamespaceConflict):
            fill(old, old.chunk_keys(prompt(0, 8)))
        with new.retrieve(keys) as hit:
            assert [bytes(view) for _, view in hit.slots()] == [
                bytes([index]) * 4096 for index in range(8)
            ]


def test_a_forked_child_may_have_a_client_of_its_own(engine: EngineProcess) -> None:
    cache = engine.client()
    keys = cache.chunk_keys(prompt(0, 2))
    fill(cache, keys)
    pid = os.fork()
    if pid == 0:
        chunks = 0
        try:
            cache = engine.client()  # drops the parent's
            chunks = read(cache, keys)
        finally:
            os._exit(chunks)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    assert read(cache, keys) == 2
    cache.close()


def test_a_client_whose_lock_file_was_removed_keeps_what_it_reads(engine: EngineProcess) -> None:
    with engine.client() as cache:
        keys = cache.chunk_keys(prompt(0, 4))
        fill(cache, keys)
        with cache.retrieve(keys) as hit:
            for path in engine.run_dir.clients.iterdir():
                path.unlink()
            thread = threading.Thread(target=cache.lookup, args=(keys,))  # says hello
            thread.start()
            thread.join()
            cache.clear()
            fill(cache, cache.chunk_keys(prompt(5000, engine.config.l1_size // SHARD)))  # type: ignore[operator]
            for index, view in hit.slots():
                assert view == content(keys, index)


def test_knowing_a_clients_id_is_not_being_that_client(engine: EngineProcess) -> None:
    with engine.client() as cache, bus.Client(engine.address) as thief:
        batch = cache.begin_store(cache.chunk_keys(prompt(0, 1)))
        lifeline = cache._session._lifeline
        assert lifeline is not None
        for inode, boot in ((0, boot_id()), (lifeline.inode, "another boot")):
            hello = m.Hello(
                who="thief", pid=1, client_id=lifeline.client_id, lock_inode=inode, boot_id=boot
            )
            assert not thief.call(hello).may_lease
        thief.call(m.Goodbye())
        assert lifeline.client_id.hex() not in str(engine.status())
        assert engine.status().l1.leased_chunks == 1
        batch.abort()


def test_a_commit_that_finds_nobody_gives_its_slots_back_later(engine: EngineProcess) -> None:
    with engine.client(fail_open=True, timeout_s=0.3) as cache:
        keys = cache.chunk_keys(prompt(0, 4))
        batch = cache.begin_store(keys)
        for index, view in batch.slots():
            view[:] = content(keys, index)
        engine.kill()
        assert batch.commit() == 0
        engine.start()
        assert wait_until(lambda: fill(cache, keys)) == 4
        assert engine.status().l1.leased_chunks == 0


def test_a_hung_engine_costs_a_verb_its_deadline_in_every_thread(engine: EngineProcess) -> None:
    with engine.client(fail_open=True, timeout_s=0.2) as cache:
        keys = cache.chunk_keys(prompt(0, 1))
        engine.signal(signal.SIGSTOP)
        took: list[float] = []

        def look() -> None:
            started_s = time.monotonic()
            cache.lookup(keys)
            took.append(time.monotonic() - started_s)

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        engine.signal(signal.SIGCONT)
        assert len(took) == 4
        assert max(took) < 2  # ten times the deadline: seconds, if there were none
        assert wait_until(lambda: fill(cache, keys)) == 1


def test_what_a_timed_out_store_was_granted_comes_back(engine: EngineProcess) -> None:
    with engine.client(fail_open=True, timeout_s=0.2) as cache:
        keys = cache.chunk_keys(prompt(0, 4))
        engine.signal(signal.SIGSTOP)
        assert fill(cache, keys) == 0
        engine.signal(signal.SIGCONT)
        assert wait_until(lambda: fill(cache, keys)) == 4


def test_a_closed_client_answers_at_once(engine: EngineProcess) -> None:
    cache = engine.client(fail_open=True)
    keys = cache.chunk_keys(prompt(0, 1))
    batch = cache.begin_store(keys)
    cache.close()
    started_s = time.monotonic()
    assert batch.commit() == 0
    assert cache.lookup(keys).hit_chunks == 0
    assert time.monotonic() - started_s < 5  # half of its timeout


def test_hits_and_pins_that_are_dropped_give_their_leases_back(engine: EngineProcess) -> None:
    with engine.client() as cache:
        keys = cache.chunk_keys(prompt(0, 2))
        fill(cache, keys)
        cache.begin_retrieve(keys)
        cache.pin(keys)
        cache.lookup(keys)
        assert engine.status().l1.leased_chunks == 0


def test_short_lived_threads_do_not_use_up_a_clients_connections(engine: EngineProcess) -> None:
    with engine.client() as cache:
        keys = cache.chunk_keys(prompt(0, 1))
        fill(cache, keys)
        for _ in range(200):
            thread = threading.Thread(target=cache.lookup, args=(keys,))
            thread.start()
            thread.join()
        assert read(cache, keys) == 1
        assert engine.status().clients[0].connections < 150


def test_a_connection_is_one_clients_at_a_time(engine: EngineProcess) -> None:
    clients = [LifeLine.create(engine.run_dir.clients) for _ in range(2)]
    with bus.Client(engine.address) as shared:
        for lifeline in clients:
            hello = m.Hello(
                who="two",
                pid=1,
                client_id=lifeline.client_id,
                lock_inode=lifeline.inode,
                boot_id=boot_id(),
            )
            assert shared.call(hello).may_lease
        clients[1].close()
        wait_until(lambda: len(engine.status().clients) == 1)
        space = shared.call(m.RegisterNamespace(namespace=NAMESPACE)).namespace_id
        with pytest.raises(bus.CallError, match="may not be given bytes"):
            shared.call(m.PrepareStore(space, bytes(32)))
        clients[0].close()
        wait_until(lambda: not engine.status().clients)


def test_a_peer_cannot_make_the_engine_believe_in_more_memory_than_there_is(
    engine: EngineProcess,
) -> None:
    l1_id = engine.open_header().l1_id
    engine.call(m.Populated(l1_id=l1_id, populated_bytes=1 << 40))
    with engine.client() as cache:
        assert fill(cache, cache.chunk_keys(prompt(0, 300))) == 256


def test_a_client_touches_only_what_the_server_has_populated(engine: EngineProcess) -> None:
    engine.kill()
    os.truncate(engine.l1_files.segment, 0)  # holes again
    os.truncate(engine.l1_files.segment, engine.config.l1_size)  # type: ignore[arg-type]
    segment = m.Segment(
        path=str(engine.l1_files.segment), size_bytes=16 << 20, populated_bytes=4 << 20
    )
    mapping = Mapping(segment, bytes(16), ask=lambda: segment)
    wait_until(lambda: engine.l1_files.segment.stat().st_blocks * 512 == 4 << 20)
    mapping.close()
    assert engine.l1_files.segment.stat().st_blocks * 512 == 4 << 20


def test_the_file_of_a_client_that_died_before_its_hello_is_removed(engine: EngineProcess) -> None:
    LifeLine.create(engine.run_dir.clients).close()
    with engine.client() as cache:
        wait_until(lambda: len(list(engine.run_dir.clients.iterdir())) == 1)
        assert fill(cache, cache.chunk_keys(prompt(0, 1))) == 1
