"""Whole engines that find the files of L1 damaged, while clients live that use them: they start, no
wrong byte is served, nobody's bytes are taken, and status and log say what was dropped.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from lmcache_mp.client import CacheClient, ChunkKeys
from lmcache_mp.messages import SLOT_UNIT_BYTES
from tests.waiting import wait_until
from tests.world import NAMESPACE, EngineProcess

Damage = Callable[[EngineProcess], None]
CHUNKS = 6


def content(keys: ChunkKeys, index: int) -> bytes:
    return keys[index] * (NAMESPACE.shard_bytes // 32)


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


def zero_state(engine: EngineProcess) -> None:
    engine.l1_files.state.write_bytes(bytes(engine.l1_files.state.stat().st_size))


def halve_state(engine: EngineProcess) -> None:
    os.truncate(engine.l1_files.state, engine.l1_files.state.stat().st_size // 2)


def empty_state(engine: EngineProcess) -> None:
    os.truncate(engine.l1_files.state, 0)


def remove_state(engine: EngineProcess) -> None:
    engine.l1_files.state.unlink()


def rewrite_header(engine: EngineProcess, header: bytes) -> None:
    with open(engine.l1_files.state, "r+b") as file:
        file.write(header)


def other_version(engine: EngineProcess) -> None:
    header = bytearray(engine.open_header().to_header())
    header[7] += 1
    rewrite_header(engine, bytes(header))


def other_boot(engine: EngineProcess) -> None:
    other = replace(engine.open_header(), boot_id="0" * 36)
    rewrite_header(engine, other.to_header())


def other_size(engine: EngineProcess) -> None:
    engine.reconfigure(l1_size="8MiB")


def remove_segment(engine: EngineProcess) -> None:
    engine.l1_files.segment.unlink()


def replace_segment(engine: EngineProcess) -> None:
    other = engine.l1_files.segment.with_suffix(".other")
    other.write_bytes(bytes(16 << 20))
    other.rename(engine.l1_files.segment)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (zero_state, "begins with"),
        (halve_state, "the state file has"),
        (empty_state, "the state file is empty"),
        (remove_state, "the state file is empty"),
        (other_version, "begins with"),
        (other_boot, "earlier boot"),
        (other_size, "of an L1 of 16MiB, now it is 8MiB"),
        (remove_segment, "the segment is gone"),
        (replace_segment, "the segment is another one"),
    ],
)
def test_files_that_do_not_fit_are_replaced_and_nobody_is_hurt(
    damage: Damage, reason: str, engine: EngineProcess, capfd: pytest.CaptureFixture[str]
) -> None:
    with engine.client(fail_open=True) as cache:
        keys, more = cache.chunk_keys(range(24)), cache.chunk_keys(range(100, 108))
        assert fill(cache, keys) == CHUNKS
        batch = cache.begin_store(more)
        with cache.retrieve(keys) as hit:
            engine.kill()
            damage(engine)
            engine.start()
            assert wait_until(lambda: fill(cache, keys)) == CHUNKS
            for index, view in batch.slots():
                view[:] = b"\xdd" * NAMESPACE.shard_bytes
                assert index < 2
            assert batch.commit() == 0
            assert read(cache, keys) == CHUNKS
            for index, view in hit.slots():
                assert view == content(keys, index)
    l1 = engine.status().l1
    assert (l1.adopted_chunks, len(l1.dropped_records)) == (0, 1)
    assert reason in next(iter(l1.dropped_records))
    assert reason in capfd.readouterr().err


@pytest.mark.parametrize("extended", [False, True])
def test_a_segment_that_lost_its_bytes_is_not_served_from(
    extended: bool, engine: EngineProcess
) -> None:
    with engine.client(fail_open=True) as cache:
        keys = cache.chunk_keys(range(24))
        fill(cache, keys)
    engine.kill()
    os.truncate(engine.l1_files.segment, 2 << 20)
    if extended:
        os.truncate(engine.l1_files.segment, 16 << 20)
    engine.start()
    l1 = engine.status().l1
    assert l1.adopted_chunks == 0
    assert "the segment" in next(iter(l1.dropped_records))
    with engine.client() as cache:
        assert fill(cache, keys) == CHUNKS
        assert read(cache, keys) == CHUNKS


def test_a_truncated_segment_does_not_shrink_an_l1_that_sizes_itself(engine: EngineProcess) -> None:
    engine.kill()
    os.truncate(engine.l1_files.segment, 2 << 20)
    engine.reconfigure(l1_size=None)
    engine.start(populated=False)
    assert engine.status().l1.capacity_bytes == 16 << 20


def test_slots_with_damaged_records_are_no_hits_and_are_counted(
    engine: EngineProcess, capfd: pytest.CaptureFixture[str]
) -> None:
    with engine.client(fail_open=True) as cache:
        keys = cache.chunk_keys(range(24))
        with cache.store(keys) as batch:
            for index, view in batch.slots():
                view[:] = content(keys, index)
            addresses = batch._slots.addresses.tolist()
        shape = engine.open_header()
        slot_units = NAMESPACE.shard_bytes // SLOT_UNIT_BYTES
        engine.kill()
        with open(engine.l1_files.state, "r+b") as file:
            for damaged in (2, 4):
                page, inside = divmod(addresses[damaged], shape.slots_per_page)
                at = shape.slot_record(page, inside // slot_units) + 70  # in its key
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ 0x10]))
        engine.start()
        assert engine.status().l1.dropped_records == {"damaged slot": 2}
        assert engine.status().l1.adopted_chunks == CHUNKS - 2
        assert "'damaged slot': 2" in capfd.readouterr().err
        assert wait_until(lambda: read(cache, keys)) == 2
        assert fill(cache, keys) == 2
        assert read(cache, keys) == CHUNKS
