"""Whole servers that lose their engine, their http process, their supervisor, or are upgraded: what
was committed is served again, what was leased is leased still, and no caller sees an exception.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

import bus
from lmcache_mp import messages as m
from lmcache_mp.client import CacheClient, ChunkKeys
from tests.test_cli import Server
from tests.waiting import wait_until
from tests.world import NAMESPACE

SHARD = NAMESPACE.shard_bytes
CHUNKS = 4
PROMPTS = 40
RESTART_S = 30.0

Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Server] = []

    def start(*flags: str) -> Server:
        servers.append(Server("--l1-size", "64MiB", *flags))
        servers[-1].ready()
        return servers[-1]

    yield start
    for server in servers:
        server.end()


def call(server: Server, request: bus.Request[m.StatusReport]) -> m.StatusReport:
    with bus.Client(f"ipc://{server.run_dir}/bus.sock") as client:
        return client.call(request)


def report(server: Server) -> m.StatusReport:
    return call(server, m.Status())


def checked(server: Server) -> None:
    with bus.Client(f"ipc://{server.run_dir}/bus.sock") as client:
        assert client.call(m.Check()).faults == []


def connect(server: Server) -> CacheClient:
    return CacheClient.connect(
        f"ipc://{server.run_dir}/bus.sock", NAMESPACE, timeout_s=10, fail_open=True
    )


def content(keys: ChunkKeys, index: int) -> bytes:
    return keys[index] * (SHARD // 32)


def fill(cache: CacheClient, keys: ChunkKeys) -> int:
    with cache.store(keys) as batch:
        for index, view in batch.slots():
            view[:] = content(keys, index)
    return batch.committed_chunks


def read(cache: CacheClient, keys: ChunkKeys) -> int:
    with cache.retrieve(keys) as hit:
        for index, view in hit.slots():
            assert view == content(keys, index)
        return hit.chunks


def killed_engine(server: Server) -> None:
    """kill -9, and wait for its successor."""
    pid = report(server).processes["engine"].pid
    os.kill(pid, signal.SIGKILL)
    served_again(server, pid)


def served_again(server: Server, pid: int) -> None:
    """Another engine than that one answers."""

    def successor() -> bool:
        try:
            return report(server).processes["engine"].pid != pid
        except bus.BusError:
            return False

    wait_until(successor, RESTART_S)


@dataclass
class Caller:
    """A thread that stores prompts of its own and reads everybody's, as an engine does."""

    server: Server
    number: int
    stop: threading.Event
    committed: dict[int, None] = field(default_factory=dict)
    """Prompts whose commit was answered for all chunks."""
    faults: list[BaseException] = field(default_factory=list)
    reads: int = 0

    def run(self) -> None:
        try:
            with connect(self.server) as cache:
                for step in itertools.count():
                    if self.stop.is_set():
                        return
                    self.serve(cache, (step * 7 + self.number) % PROMPTS)
        except BaseException as fault:
            self.faults.append(fault)

    def serve(self, cache: CacheClient, prompt: int) -> None:
        keys = keys_of(cache, prompt)
        self.reads += read(cache, keys) > 0
        if fill(cache, keys) == CHUNKS:
            self.committed[prompt] = None


def keys_of(cache: CacheClient, prompt: int) -> ChunkKeys:
    return cache.chunk_keys(range(prompt * 1000, prompt * 1000 + 4 * CHUNKS))


def test_an_engine_killed_under_load_costs_no_caller_an_exception_and_no_commit(
    serve: Serve,
) -> None:
    server = serve()
    stop = threading.Event()
    callers = [Caller(server, number, stop) for number in range(3)]
    threads = [threading.Thread(target=caller.run) for caller in callers]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            before = [caller.reads for caller in callers]
            wait_until(lambda: all(c.reads > n for c, n in zip(callers, before, strict=True)))  # noqa: B023
            killed_engine(server)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert [caller.faults for caller in callers] == [[], [], []]
    promised = {prompt for caller in callers for prompt in caller.committed}
    assert promised
    with connect(server) as cache:
        for prompt in promised:
            assert read(cache, keys_of(cache, prompt)) == CHUNKS
        wait_until(lambda: report(server).l1.leased_chunks == 0)
    checked(server)


def everybody_else_fills(server: Server) -> set[int]:
    """The addresses that a further client gets when it takes all there is."""
    with connect(server) as other:
        batch = other.begin_store(other.chunk_keys(range(4 * 64 * 16), salt="all there is"))
        addresses = set(batch._slots.addresses.tolist())
        for _, view in batch.slots():
            view[:] = b"\xdd" * SHARD
        batch.abort()
        return addresses


@pytest.mark.parametrize("way", ["engine killed", "supervisor killed", "kept"])
def test_what_living_clients_hold_is_theirs_again_exactly(way: str, serve: Serve) -> None:
    server = serve("--keep-l1") if way == "kept" else serve()
    with connect(server) as cache:
        keys, pinned, more = (cache.chunk_keys(range(n, n + 16)) for n in (0, 1000, 2000))
        assert fill(cache, keys) == fill(cache, pinned) == CHUNKS
        pin = cache.pin(pinned)
        hit, batch = cache.begin_retrieve(keys), cache.begin_store(more)
        held = {*hit._slots.addresses, *batch._slots.addresses}
        before = report(server)
        assert before.l1.leased_chunks == 3 * CHUNKS

        if way == "engine killed":
            killed_engine(server)
        elif way == "supervisor killed":
            server.process.kill()
            server.process.wait()
            server.start("--l1-size", "64MiB")
        else:
            assert server.stop() == 0  # its drain is a second: it does not wait for us
            server.start("--l1-size", "64MiB", "--keep-l1")
        served_again(server, before.processes["engine"].pid)

        after = report(server)
        assert after.epoch > before.epoch
        assert after.l1.leased_chunks == 3 * CHUNKS
        assert after.l1.adopted_chunks == 2 * CHUNKS
        others = everybody_else_fills(server)
        assert len(others) == 64 * 16 - 3 * CHUNKS
        assert not others & held
        for index, view in hit.slots():
            assert view == content(keys, index)
        for index, view in batch.slots():
            view[:] = content(more, index)
        assert batch.commit() == CHUNKS
        hit.release()
        assert [read(cache, k) for k in (keys, pinned, more)] == [CHUNKS] * 3
        pin.release()
        wait_until(lambda: report(server).l1.leased_chunks == 0)
        assert cache.counters.failures == {}
    checked(server)
    assert server.stop() == 0


@pytest.mark.parametrize("cycles", [3])
def test_an_l1_kept_over_and_over_is_served_byte_for_byte(cycles: int, serve: Serve) -> None:
    server = serve("--keep-l1")
    stored: list[int] = []
    for cycle in range(cycles):
        with connect(server) as cache:
            for prompt in stored:
                assert read(cache, keys_of(cache, prompt)) == CHUNKS
            assert fill(cache, keys_of(cache, cycle)) == CHUNKS
            stored.append(cycle)
        checked(server)
        assert server.stop() == 0
        server.start("--l1-size", "64MiB", "--keep-l1")
        assert server.ready().l1.adopted_chunks == CHUNKS * (cycle + 1)


def test_http_dies_and_the_bus_does_not_notice(serve: Serve) -> None:
    server = serve()
    with connect(server) as cache:
        keys = keys_of(cache, 1)
        fill(cache, keys)
        pid = report(server).processes["http"].pid
        os.kill(pid, signal.SIGKILL)

        def http_is_back() -> bool:
            assert read(cache, keys) == CHUNKS
            http = report(server).processes["http"]
            return http.pid != pid and http.state == "running"

        wait_until(http_is_back)
        assert cache.counters.failures == {}
