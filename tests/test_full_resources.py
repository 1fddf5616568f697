"""The directory of L1 that others fill: an error or less service, never a SIGBUS, never a crash."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.serving import Serving, as_root, epoch_of, fill, remount, small_tmpfs
from tests.verified import keys_of, retrieve, store
from tests.waiting import wait_until
from tests.world import EngineProcess

pytestmark = as_root

MIB = 1 << 20


class TestFullL1Directory:
    @pytest.fixture
    def l1_dir(self, tmp_path: Path) -> Iterator[Path]:
        with small_tmpfs(tmp_path / "shm", "size=96m,mode=1777") as path:
            yield path

    @pytest.fixture
    def engine_to_be(self, l1_dir: Path) -> Iterator[EngineProcess]:
        engine = EngineProcess({"l1_size": "64MiB", "l1_dir": str(l1_dir)})
        yield engine
        engine.finish()

    @pytest.mark.parametrize("left_mib", [0, 24])
    def test_by_others_before_population_is_done_it_is_as_large_as_it_has_become(
        self, engine_to_be: EngineProcess, l1_dir: Path, left_mib: int
    ) -> None:
        engine = engine_to_be
        with started_with_stopped_helper(engine) as helper:
            fill(l1_dir, leave_bytes=left_mib * MIB)
            helper.resume()
            wait_until(lambda: engine.status().l1.populate_error)
        l1 = engine.status().l1
        assert l1.populate_error == "the file system or the memory is full"
        assert (left_mib - 1) * MIB <= l1.populated_bytes <= left_mib * MIB
        with engine.client() as cache:
            stored, no_room = store(cache, 1000)
            assert stored + no_room == 1000
            assert (stored == 0) == (left_mib == 0)
            assert retrieve(cache, 1000) == stored
        assert engine.process is not None
        assert engine.process.poll() is None

    def test_by_others_afterwards_stores_say_so_until_there_is_room_again(
        self, engine_to_be: EngineProcess, l1_dir: Path
    ) -> None:
        engine = engine_to_be
        engine.start()
        with engine.client() as cache:
            assert store(cache, 4) == (4, 0)
            with cache.pin(keys_of(cache, 4)):
                filler = fill(l1_dir)
                stored, no_room = store(cache, 900, prompt=1)  # its records find no room
                assert stored + no_room == 900
                assert no_room > 0
                assert retrieve(cache, 900, prompt=1) == stored
                assert retrieve(cache, 4) == 4
            filler.unlink()
            assert store(cache, 500, prompt=2) == (500, 0)

    def test_at_the_restart_of_the_engine_what_is_cached_is_adopted(
        self, engine_to_be: EngineProcess, l1_dir: Path
    ) -> None:
        engine = engine_to_be
        engine.start()
        with engine.client() as cache:
            assert store(cache, 8) == (8, 0)
            fill(l1_dir)
            engine.kill()
            engine.start()
            assert retrieve(cache, 8) == 8

    def test_before_the_start_it_is_refused_and_nothing_is_left_of_the_try(
        self, engine_to_be: EngineProcess, l1_dir: Path
    ) -> None:
        fill(l1_dir, leave_bytes=2 * MIB)
        for size, why in (("64MiB", "does not fit: 2MiB are left"), ("2MiB", "is full: make room")):
            engine_to_be.reconfigure(l1_size=size)
            done = subprocess.run(
                engine_command(engine_to_be),
                capture_output=True,
                text=True,
                timeout=30,
            )
            assert done.returncode == 2
            assert why in done.stderr
            assert [path.name for path in l1_dir.iterdir()] == ["filler"]

    def test_read_only_it_is_refused_with_a_sentence(
        self, run_directory: Path, l1_dir: Path
    ) -> None:
        remount(l1_dir, "ro")
        done = Serving(run_directory / "r", l1_dir=str(l1_dir)).run()
        assert done.returncode == 2
        assert "Read-only file system: choose another directory with --l1-dir" in done.stderr
        assert "Traceback" not in done.stderr


def engine_command(engine: EngineProcess) -> list[str]:
    return [sys.executable, "-m", "lmcache_mp.engine", "--run-dir", str(engine.run_dir.path)]


class StoppedHelper:
    """The process that populates L1, stopped before it has begun."""

    def __init__(self, engine: EngineProcess) -> None:
        assert engine.process is not None
        self._engine = psutil.Process(engine.process.pid)
        found = wait_until(self._found)
        assert found is not None
        self._process = found
        self._process.suspend()

    def resume(self) -> None:
        self._process.resume()

    def kill(self) -> None:
        self._process.kill()

    def _found(self) -> psutil.Process | None:
        for child in self._engine.children():
            with contextlib.suppress(psutil.Error):
                if "lmcache_mp.l1.populate" in child.cmdline():
                    return child
        return None


@contextlib.contextmanager
def started_with_stopped_helper(engine: EngineProcess) -> Iterator[StoppedHelper]:
    engine.process = subprocess.Popen(engine_command(engine))
    helper = StoppedHelper(engine)
    wait_until(lambda: epoch_of(engine))
    assert engine.status().l1.populated_bytes == 0, "the helper was too fast for this test"
    yield helper


def test_a_killed_population_leaves_l1_as_large_as_it_has_become(run_directory: Path) -> None:
    """As the kernel does where a control group is out of memory."""
    engine = EngineProcess({"l1_size": "64MiB"})
    try:
        with started_with_stopped_helper(engine) as helper:
            helper.kill()
            wait_until(lambda: engine.status().l1.populate_error)
        with engine.client() as cache:
            assert store(cache, 10) == (0, 10)
    finally:
        engine.finish()
