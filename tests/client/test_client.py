from __future__ import annotations

import contextlib
import os
import signal
import threading
from array import array
from collections.abc import Callable

import pytest

import bus
from lmcache_mp import messages as m
from lmcache_mp.client import CacheClient, ChunkKeys, Namespace
from lmcache_mp.errors import (
    BadKeys,
    BadShard,
    ChunkTooLarge,
    LeaseNotFound,
    NamespaceConflict,
    NotRegistered,
)
from lmcache_mp.liveness import LifeLine
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
        link = cache._session.link()
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
        link = two._session.link()
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
