"""How much the `fs` adapter keeps: its capacity, the disk's room, and what goes first."""

from __future__ import annotations

import os
import time
import tracemalloc
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache_mp.l2 import AdapterError
from lmcache_mp.l2.fs import Adapter
from lmcache_mp.l2.fs.catalogue import Catalogue
from tests.l2.fs_world import (
    PAGE,
    Chunk,
    mounted,
    object_file,
    object_files,
    opened,
    unfinished_files,
    wait_scanned,
)
from tests.waiting import wait_until

MIB = 1 << 20


def used_on_disk(directory: Path) -> int:
    return sum(path.stat().st_size for path in object_files(directory))


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(0, 9), st.integers(1, 5)),
            st.tuples(st.just("forget"), st.integers(0, 9), st.just(0)),
            st.tuples(st.just("take"), st.integers(1, 12), st.just(0)),
        ),
        max_size=60,
    )
)
def test_the_catalogue_gives_up_what_was_used_longest_ago(
    steps: list[tuple[str, int, int]],
) -> None:
    catalogue, model = Catalogue(), OrderedDict[bytes, int]()
    for now, (verb, number, size) in enumerate(steps):
        key = bytes([number]) * 32
        if verb == "put":
            catalogue.put(key, size, now)
            model[key] = size
            model.move_to_end(key)
        elif verb == "forget":
            assert catalogue.forget(key) == model.pop(key, 0)
        else:
            expected: list[tuple[bytes, int]] = []
            wanted = number
            while wanted > 0 and model:
                expected.append(model.popitem(last=False))
                wanted -= expected[-1][1]
            assert catalogue.take_oldest(number) == expected
        assert catalogue.objects == len(model)
        assert catalogue.used_bytes == sum(model.values())
        assert {k for first in range(10) for k in catalogue.keys_of(first)} == set(model)


def test_the_catalogue_does_not_grow_by_what_is_gone() -> None:
    catalogue = Catalogue()
    tracemalloc.start()
    try:
        for number in range(20_000):
            key = number.to_bytes(32, "little")
            catalogue.put(key, 1, float(number))
            catalogue.forget(key)
        assert tracemalloc.get_traced_memory()[0] < 500_000  # it would be 3 MB
    finally:
        tracemalloc.stop()
    catalogue.put(bytes(32), 1, 0)
    assert catalogue.take_oldest(1) == [(bytes(32), 1)]


def test_objects_used_longest_ago_make_room(tmp_path: Path) -> None:
    chunks = [Chunk() for _ in range(6)]
    with opened(tmp_path, capacity=4 * chunks[0].size) as adapter:
        wait_scanned(adapter)
        for chunk in chunks[:4]:
            adapter.store(chunk.key, chunk.parts)
        assert chunks[0].is_in(adapter)  # a use
        adapter.store(chunks[1].key, chunks[1].parts)  # another one
        for chunk in chunks[4:]:
            adapter.store(chunk.key, chunk.parts)
        kept = adapter.lookup([chunk.key for chunk in chunks])
        assert kept == [True, True, False, False, True, True]
        assert adapter.figures() == {
            "used_bytes": 4 * chunks[0].size,
            "objects": 4,
            "evicted_objects": 2,
            "scanned": 1,
        }


def test_of_what_was_there_before_the_oldest_goes_first(tmp_path: Path) -> None:
    chunks = [Chunk() for _ in range(5)]
    with opened(tmp_path) as adapter:
        for chunk in chunks:
            adapter.store(chunk.key, chunk.parts)
    now_s = time.time()
    for age_s, chunk in zip((30, 50, 10, 40, 20), chunks, strict=True):
        os.utime(object_file(tmp_path, chunk.key), (now_s, now_s - age_s))
    with opened(tmp_path, capacity=5 * chunks[0].size) as adapter:
        wait_scanned(adapter)
        assert adapter.figures()["used_bytes"] == 5 * chunks[0].size
        assert chunks[1].is_in(adapter)  # the oldest is the youngest now
        for chunk in [Chunk(), Chunk()]:
            adapter.store(chunk.key, chunk.parts)
        kept = adapter.lookup([chunk.key for chunk in chunks])
        assert kept == [False, True, True, False, True]


def test_a_smaller_capacity_takes_effect_after_the_scan(tmp_path: Path) -> None:
    chunks = [Chunk() for _ in range(50)]
    with opened(tmp_path) as adapter:
        for chunk in chunks:
            adapter.store(chunk.key, chunk.parts)
    with opened(tmp_path, capacity=10 * chunks[0].size) as adapter:
        wait_until(lambda: adapter.figures()["evicted_objects"] == 40)
        assert used_on_disk(tmp_path) == adapter.figures()["used_bytes"] == 10 * chunks[0].size


def test_the_capacity_holds_with_many_writers(tmp_path: Path) -> None:
    chunks = [Chunk(pages=64) for _ in range(200)]
    capacity = 20 * chunks[0].size

    def store(chunk: Chunk) -> int:
        adapter.store(chunk.key, chunk.parts)
        return used_on_disk_now(tmp_path)

    with opened(tmp_path, capacity=capacity) as adapter, ThreadPoolExecutor(4) as pool:
        wait_scanned(adapter)
        assert max(pool.map(store, chunks)) <= capacity + 4 * chunks[0].size  # being unlinked
        assert used_on_disk(tmp_path) == adapter.figures()["used_bytes"] == capacity
        assert adapter.figures()["evicted_objects"] == 180  # not one too many


def used_on_disk_now(directory: Path) -> int:
    used = 0
    for path in object_files(directory):
        try:
            used += path.stat().st_size
        except FileNotFoundError:
            continue
    return used


def test_an_object_larger_than_the_capacity_is_refused(tmp_path: Path) -> None:
    small, large = Chunk(), Chunk(pages=9)
    with opened(tmp_path, capacity=8 * PAGE) as adapter:
        adapter.store(small.key, small.parts)
        with pytest.raises(AdapterError, match="36KiB is larger than the capacity of 32KiB") as why:
            adapter.store(large.key, large.parts)
        assert why.value.lasting
        assert small.is_in(adapter)


def test_a_disk_is_not_filled_to_the_brim(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path, "size=20m,mode=0700") as place, opened(place) as adapter:
        wait_scanned(adapter)
        chunks = [Chunk(pages=256) for _ in range(40)]
        for chunk in chunks:
            adapter.store(chunk.key, chunk.parts)
            found = os.statvfs(place)
            assert found.f_bavail * found.f_frsize >= MIB  # a 20th
        assert adapter.figures()["objects"] >= 17
        assert chunks[-1].is_in(adapter)


def test_what_is_deleted_makes_room_at_once(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path, "size=20m,mode=0700") as place, opened(place) as adapter:
        wait_scanned(adapter)
        for _ in range(3):
            chunks = [Chunk(pages=256) for _ in range(17)]
            for chunk in chunks:
                adapter.store(chunk.key, chunk.parts)
            adapter.delete([chunk.key for chunk in chunks])
        assert adapter.figures()["evicted_objects"] == 0


def test_a_disk_that_others_fill_makes_room_for_a_store(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path, "size=20m,mode=0700") as place, opened(place) as adapter:
        wait_scanned(adapter)
        first, second = Chunk(pages=1024), Chunk(pages=1024)
        adapter.store(first.key, first.parts)
        with open(place / "foreign", "wb", buffering=0) as file:
            assert file.write(bytes(15 * MIB)) == 15 * MIB  # what is free is not known any more
        adapter.store(second.key, second.parts)
        assert second.is_in(adapter)
        assert not first.is_in(adapter)
        assert adapter.figures()["used_bytes"] == second.size


def test_without_inodes_left_something_is_evicted(tmp_path: Path) -> None:
    with (
        mounted("tmpfs", tmp_path, "size=20m,nr_inodes=30,mode=0700") as place,
        opened(place) as adapter,
    ):
        chunks = [Chunk(bytes([1]) + number.to_bytes(31, "big")) for number in range(60)]
        for chunk in chunks:
            adapter.store(chunk.key, chunk.parts)
            assert chunk.is_in(adapter)
        assert adapter.figures()["evicted_objects"] > 0
        assert unfinished_files(place) == []


def test_a_full_disk_is_a_lasting_error_that_leaves_nothing(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path, "size=20m,mode=0700") as place:
        kept, chunk = Chunk(), Chunk(pages=256)
        with opened(place) as adapter:
            adapter.store(kept.key, kept.parts)
        with open(place / "foreign", "wb", buffering=0) as file:
            assert file.write(bytes(20 * MIB)) < 20 * MIB
        with opened(place) as adapter:  # starts, for what it has can be read
            assert kept.is_in(adapter) or adapter.figures()["evicted_objects"] == 1
            with pytest.raises(AdapterError, match="make room") as why:
                adapter.store(chunk.key, chunk.parts)
            assert why.value.lasting
            assert not chunk.is_in(adapter)
            assert unfinished_files(place) == []
            (place / "foreign").unlink()
            wait_until(lambda: stored(adapter, chunk))
            assert chunk.is_in(adapter)


def stored(adapter: Adapter, chunk: Chunk) -> bool:
    try:
        adapter.store(chunk.key, chunk.parts)
    except AdapterError:
        return False
    return True
