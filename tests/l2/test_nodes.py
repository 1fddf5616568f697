"""Servers that share a store, and a store that goes away."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lmcache_mp import messages as m
from tests.l2.stores import S3_ENVIRONMENT, redis_server, s3_server
from tests.l2.world import CHUNKS, namespace, node, prompt, retrieve, store
from tests.waiting import wait_until
from tests.world import EngineProcess

pytestmark = pytest.mark.usefixtures("credentials")
Start = Callable[..., EngineProcess]


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in S3_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@contextmanager
def shared_store(kind: str, directory: Path) -> Iterator[dict[str, Any]]:
    """What two nodes are told to use together."""
    if kind == "fs":
        yield {"type": "fs", "path": str(directory)}
    elif kind == "redis":
        with redis_server() as server:
            yield {"type": "redis", "url": server.unix_url}
    else:
        with s3_server() as server:
            server.make_bucket()
            yield {"type": "s3", "url": "s3://kv-cache/shared", "endpoint": server.endpoint}


@pytest.mark.parametrize("kind", ["fs", "redis", "s3"])
def test_what_one_node_stored_another_retrieves(
    start_engine: Start, run_directory: Path, kind: str
) -> None:
    with (
        shared_store(kind, run_directory) as shared,
        node(start_engine, shared) as here,
        node(start_engine, shared) as there,
    ):
        with here.engine.client() as client:
            keys = prompt(client, 1)
            store(client, keys)
            here.wait_cascaded(CHUNKS, kind)
        with there.engine.client() as client:
            assert retrieve(client, keys) == CHUNKS
            assert retrieve(client, prompt(client, 1, salt="another")) == 0
        for other in ({"dtype": "u16"}, {"layout": "other"}, {"revision": "2"}):
            with there.engine.client(namespace(**other)) as client:
                assert retrieve(client, prompt(client, 1)) == 0


@pytest.mark.parametrize("kind", ["fs", "redis", "s3"])
def test_a_node_that_dies_while_it_writes_leaves_nothing_half_visible(
    start_engine: Start, run_directory: Path, kind: str
) -> None:
    with (
        shared_store(kind, run_directory) as shared,
        node(start_engine, shared) as here,
        node(start_engine, shared) as there,
    ):
        with here.engine.client() as client:
            for number in range(8):
                store(client, prompt(client, number))
            wait_until(lambda: here.l2(kind).counters.cascaded_chunks > 0)
            here.end_worker(kind, signal.SIGKILL)
            here.engine.kill()
        with there.engine.client() as client:
            found = [retrieve(client, prompt(client, number)) for number in range(8)]
        assert any(found)
        assert there.l2(kind).figures["rejected_objects"] == 0


def test_a_store_that_goes_away_is_left_alone_and_filled_again_when_it_is_back(
    start_engine: Start,
) -> None:
    with (
        redis_server() as server,
        node(start_engine, {"type": "redis", "url": server.unix_url, "retries": 0}) as running,
        running.engine.client() as client,
    ):
        keys, more = prompt(client, 1), prompt(client, 2)
        store(client, keys)
        running.wait_cascaded(CHUNKS, "redis")
        server.kill()
        store(client, more)
        wait_until(lambda: running.l2("redis").state == "failing")
        assert running.l2("redis").error
        assert retrieve(client, more) == CHUNKS
        assert retrieve(client, prompt(client, 3)) == 0
        server.start()
        wait_until(lambda: running.l2("redis").state == "open", timeout_s=40)
        running.wait_cascaded(3 * CHUNKS, "redis")
        running.engine.call(m.Clear())
        assert retrieve(client, keys) == CHUNKS
        assert retrieve(client, more) == CHUNKS
