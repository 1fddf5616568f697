"""Several servers on one directory of the `fs` adapter, some of them killed; and its scan."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest

from lmcache_mp.l2.fs import walker
from tests.l2.fs_process import finish, numbered, other_server, stop_within_a_write
from tests.l2.fs_world import (
    PAGE,
    Chunk,
    object_file,
    object_files,
    opened,
    unfinished_files,
    wait_scanned,
)
from tests.waiting import wait_until


@pytest.fixture
def quick_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walker, "PASS_S", 0.2)


def test_what_another_server_stores_and_deletes_is_seen_at_once(tmp_path: Path) -> None:
    chunks = [numbered(number) for number in range(100)]
    keys = [chunk.key for chunk in chunks]
    with opened(tmp_path) as adapter:
        wait_scanned(adapter)
        with other_server(tmp_path, "store", 0, 70) as other:
            wait_until(lambda: object_files(tmp_path))
            for chunk in chunks[30:]:  # at the same time
                adapter.store(chunk.key, chunk.parts)
            finish(other)
        assert adapter.lookup(keys) == [True] * 100
        assert all(chunk.is_in(adapter) for chunk in chunks)
        with other_server(tmp_path, "delete", 0, 50) as other:
            finish(other)
        assert adapter.lookup(keys) == [False] * 50 + [True] * 50
        assert [chunk.is_in(adapter) for chunk in chunks] == [False] * 50 + [True] * 50
        assert adapter.figures()["objects"] == 50
        for chunk in chunks[:50]:
            adapter.store(chunk.key, chunk.parts)
        assert all(chunk.is_in(adapter) for chunk in chunks)
    assert unfinished_files(tmp_path) == []


@pytest.mark.usefixtures("quick_passes")
def test_two_that_evict_agree_on_what_is_there(tmp_path: Path) -> None:
    chunks = [numbered(number) for number in range(200, 300)]
    capacity = 10 * chunks[0].size
    with opened(tmp_path, capacity=capacity) as adapter:
        wait_scanned(adapter)
        with other_server(tmp_path, "evict", 0, 100) as other:
            wait_until(lambda: object_files(tmp_path))
            for chunk in chunks:
                adapter.store(chunk.key, chunk.parts)
            finish(other)

        def reconciled() -> bool:
            on_disk = len(object_files(tmp_path))
            figures = adapter.figures()
            return figures["objects"] == on_disk and figures["used_bytes"] <= capacity

        wait_until(reconciled)
        assert adapter.figures()["used_bytes"] == len(object_files(tmp_path)) * chunks[0].size


@pytest.mark.usefixtures("quick_passes")
def test_what_others_add_and_remove_is_counted_after_a_while(tmp_path: Path) -> None:
    with opened(tmp_path) as adapter:
        wait_scanned(adapter)
        with other_server(tmp_path, "store", 0, 50) as other:
            finish(other)
        wait_until(lambda: adapter.figures()["objects"] == 50)
        with other_server(tmp_path, "delete", 0, 30) as other:
            finish(other)
        wait_until(lambda: adapter.figures()["objects"] == 20)
        assert adapter.figures()["used_bytes"] == 20 * numbered(0).size
        shutil.rmtree(object_file(tmp_path, numbered(40).key).parent)
        wait_until(lambda: adapter.figures()["objects"] < 20)


def test_a_writer_killed_within_a_write_leaves_nothing_half_visible(tmp_path: Path) -> None:
    pages = 4096
    with other_server(tmp_path, "endless", pages) as other:
        unfinished = stop_within_a_write(other, tmp_path)
        with opened(tmp_path) as adapter:
            wait_scanned(adapter)  # it lives, however long it takes
            assert unfinished.exists()
            assert {path.stat().st_size for path in object_files(tmp_path)} <= {pages * PAGE}
            assert unfinished.name[1:65] not in {key.hex() for key in adapter.scan()}
            assert adapter.lookup([bytes.fromhex(unfinished.name[1:65])]) == [False]
        other.kill()
        other.wait(timeout=10)
        with opened(tmp_path) as adapter:
            wait_until(lambda: not unfinished_files(tmp_path))


def test_unfinished_files_of_other_hosts_are_removed_when_they_are_old(tmp_path: Path) -> None:
    chunk = Chunk(bytes([0xAB]) + bytes(31))
    young, old = (
        tmp_path / "ab" / f".{chunk.key.hex()}.0123abcd-4567-4026531836-17-{started}-0"
        for started in (1, 2)
    )
    young.parent.mkdir()
    for path, age_s in ((young, 6000), (old, 7300)):
        path.write_bytes(b"half")
        os.utime(path, (0, time.time() - age_s))
    with opened(tmp_path) as adapter:
        wait_until(lambda: not old.exists())
        wait_scanned(adapter)
        assert young.exists()
        assert list(adapter.scan()) == []


def test_many_objects_are_served_at_once_and_counted_in_the_background(tmp_path: Path) -> None:
    chunks = [Chunk() for _ in range(40)]
    with opened(tmp_path) as adapter:
        for chunk in chunks:
            adapter.store(chunk.key, chunk.parts)
    for number in range(20_000):
        key = random.randbytes(32)
        path = object_file(tmp_path, key)
        path.parent.mkdir(exist_ok=True)
        with open(path, "xb") as file:
            file.truncate(number % 3 * PAGE)
    with opened(tmp_path) as adapter:
        rounds = 0
        while rounds == 0 or adapter.figures()["scanned"] == 0:
            rounds += 1
            assert all(chunk.is_in(adapter) for chunk in chunks)
            assert adapter.lookup([bytes(32), chunks[0].key]) == [False, True]
        assert adapter.figures()["objects"] == 20_040
        assert len(set(adapter.scan())) == 20_040


def test_an_adapter_closed_while_it_scans_ends_at_once(tmp_path: Path) -> None:
    for _ in range(2000):
        path = object_file(tmp_path, random.randbytes(32))
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for _ in range(20):
        with opened(tmp_path):
            pass
    assert len(object_files(tmp_path)) == 2000
