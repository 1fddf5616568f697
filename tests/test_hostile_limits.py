"""Each bound on what one peer may take: past it the peer is told which, and nobody else notices."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import bus
from bus import Call, Server, wire
from lmcache_mp import messages as m
from lmcache_mp.client import CacheClient
from lmcache_mp.engine.open_calls import OpenCalls
from lmcache_mp.errors import BadLease, LimitReached
from lmcache_mp.liveness import LifeLine
from lmcache_mp.rundir import RunDir, boot_id
from lmcache_mp.units import Size
from tests.bus.vocabulary import Echo, Text
from tests.fuzz.endless import LARGE_PART, SMALL_PART, send_endless_message
from tests.fuzz.inside import Inside, inside
from tests.serving import epoch_of, serving
from tests.waiting import wait_until
from tests.world import NAMESPACE, EngineProcess, short_directory

Start = Callable[..., EngineProcess]
KEY = bytes(32)


class Somebody:
    """A client, message by message."""

    def __init__(self, engine: EngineProcess) -> None:
        self.line = LifeLine.create(engine.run_dir.clients)
        self._address = engine.address

    def __enter__(self) -> Somebody:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.line.close()

    def connect(self) -> bus.Client:
        """One more connection, which has not said hello."""
        return bus.Client(self._address)

    def hello(self, known_epoch: int = 0) -> m.Hello:
        return m.Hello(
            who="somebody",
            pid=os.getpid(),
            client_id=self.line.client_id,
            lock_inode=self.line.inode,
            boot_id=boot_id(),
            known_epoch=known_epoch,
        )


def test_connections_beyond_the_limit_are_refused_and_those_that_end_make_room(
    start_engine: Start,
) -> None:
    engine = start_engine(max_connections=3)
    with Somebody(engine) as somebody, somebody.connect() as one, somebody.connect() as two:
        for client in (one, two):
            assert client.call(somebody.hello()).may_lease
        with somebody.connect() as three, somebody.connect() as four:
            assert three.call(somebody.hello()).may_lease
            for _ in range(10):  # however often it asks
                with pytest.raises(LimitReached, match=r"3 connections .*3 \(max_connections\)"):
                    four.call(somebody.hello())
            assert three.call(somebody.hello()).may_lease  # it is one of them already
            assert four.call(m.Status()).clients[0].connections == 3
        with somebody.connect() as five:
            wait_until(lambda: welcome(five, somebody))
        one.call(m.Goodbye())


def welcome(client: bus.Client, somebody: Somebody) -> bool:
    try:
        return client.call(somebody.hello()).may_lease
    except LimitReached:  # the ones before are about to be noticed as gone
        return False


def test_leases_beyond_the_limit_are_refused_and_those_given_back_make_room(
    start_engine: Start,
) -> None:
    engine = start_engine(max_leases=2)
    with engine.client() as cache, engine.client() as other:
        keys = [cache.chunk_keys(range(n, n + 4)) for n in range(0, 12, 4)]
        held = [cache.begin_store(wanted) for wanted in keys[:2]]
        with pytest.raises(LimitReached, match=r"may have 2 \(max_leases\)"):
            cache.begin_store(keys[2])
        assert other.begin_store(keys[2]).commit() == 0
        for batch in held:
            assert batch.commit() == 0
        assert cache.begin_store(keys[2]).commit() == 0


def test_an_observer_costs_nothing_that_stays(engine: EngineProcess) -> None:
    """It has no name to keep anything under: what there is of it is its connection."""
    descriptors = f"/proc/{engine.status().processes['engine'].pid}/fd"
    before = len(os.listdir(descriptors))
    observers = [bus.Client(engine.address) for _ in range(200)]
    for observer in observers:
        assert not observer.call(m.Hello(who="observer", pid=1)).may_lease
        observer.call(m.RegisterNamespace(namespace=NAMESPACE))
        with pytest.raises(bus.CallError, match="may not be given bytes"):
            observer.call(m.PrepareStore(1, KEY))
    status = engine.status()
    assert status.clients == []
    assert len(status.namespaces) == 1
    for observer in observers:
        observer.close()
    wait_until(lambda: len(os.listdir(descriptors)) <= before)


def test_open_calls_are_counted_by_client_and_forgotten_with_it() -> None:
    calls: OpenCalls[str] = OpenCalls(limit=2)
    calls.add(b"one", 1, "a")
    calls.add(b"one", 2, "b")
    with pytest.raises(LimitReached, match=r"2 calls of the client .* 2 may \(max_open_calls\)"):
        calls.add(b"one", 3, "c")
    with pytest.raises(BadLease, match="call 1 is open already"):
        calls.add(b"one", 1, "c")
    calls.add(b"two", 1, "d")
    assert calls.pop(b"one", 1) == "a"
    assert calls.pop(b"one", 1) is None
    calls.add(b"one", 3, "c")
    assert calls.pop_all_of(b"one") == ["b", "c"]
    assert calls.pop_all_of(b"one") == []
    assert (len(calls), calls.pop_all(), len(calls)) == (1, ["d"], 0)


def store(call_id: int) -> bytes:
    return wire.frame(wire.REQUEST, call_id, 0, m.PrepareStore(1, call_id.to_bytes(32, "big")))


def populated(engine: Inside) -> m.Populated:
    geometry = engine.l1.state.geometry
    return m.Populated(l1_id=geometry.l1_id, populated_bytes=geometry.l1_bytes)


def test_stores_that_wait_for_memory_are_bounded_and_served_once_it_is_there(
    run_directory: Path,
) -> None:
    with inside(run_directory, populated_pages=0) as engine:
        assert {engine.take(store(call_id)) for call_id in range(1, 129)} == {""}
        assert engine.take(store(129)) == "limit_reached"
        assert engine.take(store(128)) == "bad_lease"
        engine.take(wire.frame(wire.NOTICE, 1, 0, m.Release(128)))  # its caller has given up
        assert engine.take(store(129)) == ""
        engine.say(populated(engine))
        # nobody is connected here: what they were granted was taken back as undeliverable
        assert engine.server.counters.undeliverable == 128
        assert engine.server.counters.errors == 0
        assert engine.l1.counters.aborted_chunks == 128
        assert engine.faults() == []


def test_stores_that_wait_are_forgotten_with_their_client(run_directory: Path) -> None:
    with inside(run_directory, populated_pages=0) as engine:
        for call_id in range(1, 129):
            assert engine.take(store(call_id)) == ""
        engine.say_hello()  # as somebody new: the one before is dead
        for call_id in range(1, 129):
            assert engine.take(store(call_id)) == ""
        engine.say(populated(engine))
        assert engine.server.counters.undeliverable == 128


def test_without_memory_a_handler_ends_the_loop_rather_than_leave_things_half_done() -> None:
    """The records say how far it came: a restarted engine goes on from there."""

    def half_done(call: Call, message: Echo) -> Text:
        raise MemoryError

    def tick(now_s: float) -> None:
        raise MemoryError

    with short_directory() as directory:
        server = Server([Echo], epoch=1)
        server.on(Echo, half_done)
        address = server.bind(f"ipc://{directory}/bus.sock")
        with bus.Client(address) as client:
            client.start(Echo(""))
            with pytest.raises(MemoryError):
                server.run()
        server.every(0.0, tick)
        with pytest.raises(MemoryError):
            server.run()
        server.close()


LIMIT_BYTES = 256 << 20


def fill_memory(run_dir: RunDir, part: bytes) -> int:
    path = run_dir.bus_address.removeprefix("ipc://")
    return send_endless_message(path, part, limit_bytes=4 * LIMIT_BYTES)


def test_a_peer_that_fills_the_engines_memory_loses_its_connection(start_engine: Start) -> None:
    engine = start_engine(engine_memory=Size(LIMIT_BYTES))
    pid = engine.status().processes["engine"].pid
    with engine.client() as cache:
        keys = cache.chunk_keys(range(8 * NAMESPACE.chunk_tokens))
        for _ in range(3):
            assert LIMIT_BYTES // 2 < fill_memory(engine.run_dir, LARGE_PART) < LIMIT_BYTES
            assert cache.store(keys).commit() == 0
            assert cache.lookup(keys).hit_chunks == 0
    assert engine.status().processes["engine"].pid == pid


def test_a_peer_that_fills_it_with_trifles_costs_a_restart_and_no_chunk(
    run_directory: Path,
) -> None:
    """The bound is not the machine's memory, and L1 outlives the engine that held it."""
    with (
        serving(run_directory / "r", "--engine-memory", "256MiB") as server,
        CacheClient.connect(server.run_dir.bus_address, NAMESPACE) as cache,
    ):
        keys = cache.chunk_keys(range(8 * NAMESPACE.chunk_tokens))
        with cache.store(keys) as batch:
            for index, view in batch.slots():
                view[:] = bytes([index + 1]) * len(view)
        before = server.status()
        assert fill_memory(server.run_dir, SMALL_PART) < LIMIT_BYTES
        wait_until(lambda: epoch_of(server) > before.epoch, timeout_s=20)
        status = server.status()
        assert status.l1.adopted_chunks == 8
        assert wait_until(lambda: server.status().processes["engine"].restarts) == 1
        assert server.check() == []
        wait_until(lambda: cache.lookup(keys).hit_chunks == 8)
        with cache.retrieve(keys) as hit:
            read = [bytes(view) for _, view in hit.slots()]
        assert read == [bytes([n]) * NAMESPACE.shard_bytes for n in range(1, 9)]
