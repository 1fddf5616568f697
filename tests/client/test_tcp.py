"""Clients that reach the engine over tcp, with keys: lookup and ops, but no bytes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import bus
from lmcache_mp import messages as m
from lmcache_mp.client import CacheClient
from lmcache_mp.errors import LeaseRefused
from lmcache_mp.key_files import KeyDirectory, KeyFileError, client_curve
from lmcache_mp.units import Size
from tests.test_cli import CLEAN
from tests.waiting import wait_until
from tests.world import NAMESPACE, EngineProcess

Start = Callable[..., EngineProcess]
COMMAND = (sys.executable, "-m", "lmcache_mp")


class Remote:
    """An engine with a tcp address that requires a key, and the file of one client."""

    def __init__(self, directory: Path, start_engine: Start) -> None:
        self.keys = KeyDirectory(directory / "keys")
        self.keys.make(replace=False)
        self.key_file = directory / "alice.key_secret"
        self.keys.make_client("alice", self.key_file, replace=False)
        self.engine = start_engine(bus=("tcp://127.0.0.1:0",), bus_keys=str(self.keys.path))
        self.address = self.engine.status().bus.addresses[1]

    @property
    def refused(self) -> int:
        return self.engine.status().bus.refused

    def connect(self, *, fail_open: bool = False, key_file: Path | None = None) -> CacheClient:
        return CacheClient.connect(
            self.address,
            NAMESPACE,
            fail_open=fail_open,
            timeout_s=10,
            key_file=key_file or self.key_file,
        )


@pytest.fixture
def remote(tmp_path: Path, start_engine: Start) -> Remote:
    return Remote(tmp_path, start_engine)


def fill(cache: CacheClient, chunks: int) -> None:
    with cache.store(cache.chunk_keys(range(chunks * NAMESPACE.chunk_tokens))) as batch:
        for _, view in batch.slots():
            view[:] = bytes(NAMESPACE.shard_bytes)


def test_a_client_with_a_key_looks_up_and_manages(remote: Remote) -> None:
    with remote.engine.client() as local:
        fill(local, 3)
    with remote.connect() as cache:
        keys = cache.chunk_keys(range(4 * NAMESPACE.chunk_tokens))
        assert cache.lookup(keys).hit_chunks == 3
        assert cache.touch(keys) == 3
        assert cache.delete(keys) == 3
        assert cache.lookup(keys).hit_chunks == 0
        assert cache.clear() == 0
    assert remote.refused == 0


def test_bytes_are_refused_by_name(remote: Remote) -> None:
    with remote.connect() as cache:
        keys = cache.chunk_keys(range(NAMESPACE.chunk_tokens))
        for verb in (cache.begin_store, cache.begin_retrieve, cache.pin):
            with pytest.raises(LeaseRefused, match=f"{remote.address} gives this client no bytes"):
                verb(keys)


def test_the_engine_itself_refuses_bytes_to_a_connection_that_asks_all_the_same(
    remote: Remote,
) -> None:
    with bus.Client(remote.address, curve=client_curve(remote.key_file)) as client:
        welcome = client.call(m.Hello(who="remote", pid=1))
        client.epoch = welcome.epoch
        space = client.call(m.RegisterNamespace(namespace=NAMESPACE)).namespace_id
        key = bytes(m.KEY_BYTES)
        calls = [
            client.start(request)
            for request in (m.PrepareStore(space, key), m.PrepareRetrieve(space, key))
        ]
        for call in (*calls, client.start(m.Pin(space, key))):
            with pytest.raises(LeaseRefused, match="may not be given bytes"):
                call.result()


def test_a_refused_verb_fails_open_as_a_miss_or_a_skipped_store_and_says_so(
    remote: Remote,
) -> None:
    with remote.connect(fail_open=True) as cache:
        keys = cache.chunk_keys(range(NAMESPACE.chunk_tokens))
        with cache.store(keys) as batch:
            assert list(batch.slots()) == []
        with cache.retrieve(keys) as hit:
            assert hit.chunks == 0
        assert cache.counters.failures == {"store": 1, "retrieve": 1}
        assert "gives this client no bytes: it said hello" in cache.counters.last_failure
        assert cache.lookup(keys).hit_chunks == 0


@pytest.mark.parametrize("client_id", [b"", b"\7" * 16], ids=["observer", "unknown client"])
def test_who_is_given_no_bytes_learns_neither_the_l1_id_nor_the_path(
    remote: Remote, client_id: bytes
) -> None:
    """The id is what the process that populates L1 proves itself with."""
    hello = m.Hello(who="remote", pid=1, client_id=client_id)
    with bus.Client(remote.address, curve=client_curve(remote.key_file)) as client:
        over_tcp = client.call(hello)
    for welcome in (over_tcp, remote.engine.call(hello)):
        assert not welcome.may_lease
        assert welcome.l1_id == b""
        assert welcome.segment.path == ""
        assert welcome.segment.size_bytes == remote.engine.config.l1_size
    with remote.engine.client() as local:
        assert local._session._mapping is not None
        assert local._session._mapping.l1_id == remote.engine.open_header().l1_id


def test_a_revoked_key_fails_at_once_and_a_new_one_works_without_a_restart(
    remote: Remote, tmp_path: Path
) -> None:
    with remote.connect() as inside:
        (remote.keys.clients / "alice.key").unlink()
        with pytest.raises(bus.Unavailable, match="not on the server's list"):
            remote.connect()
        remote.keys.make_client("bob", tmp_path / "bob", replace=False)
        remote.connect(key_file=tmp_path / "bob").close()
        assert inside.clear() == 0
    wait_until(lambda: remote.refused == 1)


def test_a_client_without_a_valid_key_fails_open_and_says_why_each_time(
    remote: Remote, tmp_path: Path
) -> None:
    stranger = KeyDirectory(tmp_path / "elsewhere")
    stranger.make(replace=False)
    stranger.make_client("alice", tmp_path / "stranger", replace=False)
    for key_file in (None, tmp_path / "stranger"):
        with CacheClient.connect(
            remote.address, NAMESPACE, timeout_s=1000, key_file=key_file
        ) as cache:
            keys = cache.chunk_keys(range(NAMESPACE.chunk_tokens))
            for _ in range(5):
                assert cache.lookup(keys).hit_chunks == 0
                assert "key" in cache.counters.last_failure
            assert cache.counters.failures == {"connect": 1, "lookup": 5}


def test_a_key_file_that_cannot_be_used_is_an_error_at_connect(remote: Remote) -> None:
    remote.key_file.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 0600"):
        remote.connect(fail_open=True)


def test_commands_reach_a_server_elsewhere_with_a_key_file(remote: Remote) -> None:
    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, *words, "--address", remote.address]
        return subprocess.run(
            command, env=CLEAN | environment, capture_output=True, text=True, timeout=30
        )

    with remote.engine.client() as local:
        fill(local, 2)
    key_file = str(remote.key_file)
    status = run("status", "--json", "--key-file", key_file)
    assert msgspec.json.decode(status.stdout, type=m.StatusReport).l1.ready_chunks == 2
    assert "no fault" in run("check", LMCACHE_MP_KEY_FILE=key_file).stdout
    cleared = run("clear", "--key-file", key_file)
    assert cleared.stdout == f"cleared 2 chunks of {remote.address}\n"
    without = run("status")
    assert without.returncode == 1
    assert "and this client has none" in without.stderr
    wait_until(lambda: remote.refused == 1)
    assert "1 connections refused" in run("status", "--key-file", key_file).stdout
    remote.key_file.chmod(0o644)
    unusable = run("status", "--key-file", key_file)
    assert unusable.returncode == 2
    assert f"chmod 0600 {key_file}" in unusable.stderr


def test_an_engine_whose_keys_cannot_be_used_does_not_start(remote: Remote) -> None:
    remote.engine.kill()
    remote.keys.server_secret.chmod(0o644)
    refused = subprocess.run(
        [sys.executable, "-m", "lmcache_mp.engine", "--run-dir", str(remote.engine.run_dir.path)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert refused.returncode == 2
    assert f"chmod 0600 {remote.keys.server_secret}" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_messages_larger_than_configured_are_dropped(start_engine: Start) -> None:
    engine = start_engine(bus_max_message=Size("512KiB"))
    with bus.Client(engine.address) as client:
        fits = m.Lookup(0, bytes(m.MAX_KEYS * m.KEY_BYTES))
        with pytest.raises(bus.CallError):  # there is no namespace 0
            client.call(fits)
        with pytest.raises(bus.Unavailable, match="connection broke"):
            client.call(m.Lookup(0, bytes(600_000)))
