"""The life of an engine process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

import bus
from lmcache_mp import messages as m
from tests.waiting import wait_until
from tests.world import NAMESPACE, EngineProcess

Start = Callable[..., EngineProcess]


def fill(engine: EngineProcess, chunks: int) -> None:
    with engine.client() as cache:
        keys = cache.chunk_keys(range(chunks * NAMESPACE.chunk_tokens))
        with cache.store(keys) as batch:
            for _, view in batch.slots():
                view[:] = bytes(NAMESPACE.shard_bytes)


def run_once(engine: EngineProcess) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lmcache_mp.engine", "--run-dir", str(engine.run_dir.path)],
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_a_clean_stop_frees_l1(engine: EngineProcess) -> None:
    fill(engine, 3)
    assert engine.l1_files.segment.exists()
    assert engine.stop() == 0
    assert not engine.l1_files.segment.exists()
    assert not engine.l1_files.state.exists()


def test_keep_l1_keeps_it_over_a_clean_stop(start_engine: Start) -> None:
    engine = start_engine(keep_l1=True)
    fill(engine, 3)
    assert engine.stop() == 0
    engine.start()
    assert engine.status().l1.adopted_chunks == 3


def test_no_keep_l1_adopts_nothing_even_after_a_crash(start_engine: Start) -> None:
    engine = start_engine(keep_l1=False)
    fill(engine, 3)
    engine.kill()
    engine.start()
    assert engine.status().l1.adopted_chunks == 0


def test_a_cold_start_adopts_nothing(engine: EngineProcess) -> None:
    fill(engine, 3)
    engine.kill()
    engine.start("--cold")
    assert engine.status().l1.ready_chunks == 0


def test_another_l1_size_is_a_cold_start(start_engine: Start) -> None:
    engine = start_engine()
    fill(engine, 3)
    engine.kill()
    engine.reconfigure(l1_size="8MiB")
    engine.start()
    assert engine.status().l1.adopted_chunks == 0
    assert engine.status().l1.capacity_bytes == 8 << 20


def test_every_incarnation_has_a_later_epoch(engine: EngineProcess) -> None:
    first = engine.status().epoch
    engine.kill()
    engine.start("--cold")
    assert engine.status().epoch > first


def test_a_message_for_an_earlier_epoch_is_refused_by_name(engine: EngineProcess) -> None:
    with bus.Client(engine.address) as client:
        client.epoch = 7
        with pytest.raises(bus.StaleEpoch, match="for epoch 7"):
            client.call(m.Status())


def test_a_stop_waits_for_leases_and_grants_nothing_new(engine: EngineProcess) -> None:
    with engine.client() as cache:
        keys = cache.chunk_keys(range(8))
        batch = cache.begin_store(keys)
        engine.signal(signal.SIGTERM)
        wait_until(lambda: engine.status().state == "draining")
        with pytest.raises(bus.CallError, match="stopping"):
            cache.store(cache.chunk_keys(range(100, 108)))
        for _, view in batch.slots():
            view[:] = bytes(NAMESPACE.shard_bytes)
        assert batch.commit() == 2
        assert engine.process is not None
        assert engine.process.wait(timeout=10) == 0


def test_a_stop_does_not_wait_longer_than_the_drain(start_engine: Start) -> None:
    engine = start_engine(drain_s=0.2)
    with engine.client(fail_open=True) as cache:
        cache.begin_store(cache.chunk_keys(range(8)))
        assert engine.stop() == 0


def test_a_second_engine_in_the_run_directory_is_refused(engine: EngineProcess) -> None:
    second = run_once(engine)
    assert second.returncode == 2
    assert f"another engine (pid {engine.status().processes['engine'].pid})" in second.stderr
    assert engine.status().state == "ready"


def test_a_second_engine_on_the_same_l1_files_is_refused(start_engine: Start) -> None:
    first = start_engine()
    second = start_engine()
    second.stop()
    second.reconfigure(name=first.config.name)
    refused = run_once(second)
    assert refused.returncode == 2
    assert "in use by another engine" in refused.stderr


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"l1_size": "8TiB"}, "does not fit"),
        ({"l1_dir": "/nowhere"}, "choose another"),
        ({"l1_dir": "/proc"}, "choose another"),
    ],
)
def test_what_cannot_be_served_is_refused_with_what_to_change(
    start_engine: Start, settings: dict[str, str], words: str
) -> None:
    engine = start_engine()
    engine.stop()
    engine.reconfigure(**settings)
    refused = run_once(engine)
    assert refused.returncode == 2
    assert words in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not engine.l1_files.state.exists()


def test_l1_is_sized_from_what_is_free_unless_told(start_engine: Start) -> None:
    if os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize < 4 << 30:
        pytest.skip("needs 4 GiB free in /dev/shm")
    engine = start_engine()
    engine.stop()
    engine.reconfigure(l1_size=None)
    engine.start(populated=False)
    status = engine.status()
    free = os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize
    assert 1 << 30 <= status.l1.capacity_bytes <= free


def test_a_store_before_l1_is_populated_waits_for_the_first_pages(start_engine: Start) -> None:
    engine = start_engine(keep_l1=False)
    engine.kill()
    engine.start(populated=False)
    fill(engine, 2)
    assert engine.status().counters.stored_chunks == 2


def test_an_address_in_use_is_refused_with_a_sentence(engine: EngineProcess) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        engine.stop()
        port = taken.getsockname()[1]
        engine.reconfigure(bus=(f"tcp://127.0.0.1:{port}",), bus_insecure_loopback=True)
        refused = run_once(engine)
    assert refused.returncode == 2
    assert f"cannot listen at tcp://127.0.0.1:{port}: Address already in use" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_start_that_was_cut_off_is_no_obstacle_to_the_next(engine: EngineProcess) -> None:
    engine.kill()
    os.truncate(engine.l1_files.segment, 0)
    engine.reconfigure(l1_size=None)
    engine.start(populated=False)
    assert engine.status().state == "ready"


def test_a_damaged_lease_record_of_the_living_means_a_new_l1(engine: EngineProcess) -> None:
    with engine.client(fail_open=True) as cache:
        batch = cache.begin_store(cache.chunk_keys(range(8)))
        geometry = engine.open_header()
        engine.kill()
        with open(engine.l1_files.state, "r+b") as state:
            state.seek(geometry.leases_at + 16)  # into the first record
            byte = state.read(1)[0]
            state.seek(geometry.leases_at + 16)
            state.write(bytes([byte ^ 1]))
        engine.start()
        assert any("damaged lease" in why for why in engine.status().l1.dropped_records)
        assert batch.commit() == 0
        assert engine.status().l1.ready_chunks == 0
