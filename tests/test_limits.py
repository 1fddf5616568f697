"""Descriptors, the disk of the run directory, a control group's memory: when they run out."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import bus
from lmcache_mp.client import CacheClient
from tests.serving import Serving, as_root, epoch_of, fill, remount, serving, small_tmpfs
from tests.verified import retrieve, store
from tests.waiting import wait_until
from tests.world import NAMESPACE

pytestmark = as_root

MIB = 1 << 20


class TestDescriptors:
    def test_an_engine_without_descriptors_dies_and_comes_back_with_l1(
        self, run_directory: Path
    ) -> None:
        with (
            serving(run_directory / "r", prefix=("prlimit", "--nofile=96:96")) as server,
            CacheClient.connect(server.run_dir.bus_address, NAMESPACE) as cache,
        ):
            assert store(cache, 8) == (8, 0)
            epoch = server.status().epoch
            with contextlib.ExitStack() as flood:
                connect(server.run_dir.path / "bus.sock", 200, flood)
                wait_until(lambda: epoch_of(server) not in (0, epoch), timeout_s=20)
            wait_until(lambda: retrieve(cache, 8) == 8)
            assert wait_until(lambda: ends_of_engine(server)) == "was killed by SIGABRT"
            assert server.check() == []
            assert server.stop() == 0

    def test_a_server_takes_as_many_as_it_may(self, run_directory: Path) -> None:
        with serving(run_directory / "r", prefix=("prlimit", "--nofile=96:2048")) as server:
            pid = server.status().processes["engine"].pid
            with contextlib.ExitStack() as flood:
                connect(server.run_dir.path / "bus.sock", 200, flood)
                wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) > 200)
                assert server.status().processes["engine"].pid == pid
            assert server.stop() == 0

    def test_an_http_process_keeps_some_descriptors_for_those_who_ask(
        self, run_directory: Path
    ) -> None:
        with serving(run_directory / "r", prefix=("prlimit", "--nofile=64:64")) as server:
            http = server.status().processes["http"]
            url = http.address + "/healthcheck"
            wait_until(lambda: answers(url))
            host, port = http.address.removeprefix("http://").rsplit(":", 1)
            with contextlib.ExitStack() as flood:
                for _ in range(100):
                    flood.enter_context(socket.create_connection((host, int(port))))
                wait_until(lambda: answers(url))
            wait_until(lambda: answers(url))
            assert server.status().processes["http"].pid == http.pid
            assert server.stop() == 0


def connect(path: Path, count: int, flood: contextlib.ExitStack) -> None:
    """Connections that say nothing; fewer if the server goes away meanwhile."""
    for _ in range(count):
        connection = flood.enter_context(socket.socket(socket.AF_UNIX))
        with contextlib.suppress(OSError):
            connection.connect(str(path))


def ends_of_engine(server: Serving) -> str:
    """How the last engine ended, once the supervisor has told."""
    return server.status().processes["engine"].note


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


class TestFullRunDirectory:
    @pytest.fixture
    def run_dir(self, run_directory: Path) -> Iterator[Path]:
        with small_tmpfs(run_directory / "r", "size=1m,nr_inodes=200,mode=700") as path:
            yield path

    def test_at_the_start_it_is_a_sentence_and_no_half_settings_are_left(
        self, run_dir: Path
    ) -> None:
        fill(run_dir)
        done = Serving(run_dir).run()
        assert done.returncode == 2
        assert f"{run_dir}/config.json cannot be written: No space left on device" in done.stderr
        assert "Traceback" not in done.stderr
        assert {path.name for path in run_dir.iterdir() if "config" in path.name} == set()

    def test_without_inodes_too(self, run_dir: Path) -> None:
        take_all_inodes(run_dir)
        done = Serving(run_dir).run()
        assert done.returncode == 2
        assert f"run directory {run_dir} cannot be used: No space left on device" in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_running_server_goes_on_and_its_engine_comes_back(self, run_dir: Path) -> None:
        with serving(run_dir) as server:
            fill(run_dir)
            with CacheClient.connect(server.run_dir.bus_address, NAMESPACE) as cache:
                assert store(cache, 8) == (8, 0)
                status = server.status()
                os.kill(status.processes["engine"].pid, signal.SIGKILL)
                wait_until(lambda: epoch_of(server) not in (0, status.epoch))
                assert wait_until(lambda: retrieve(cache, 8)) == 8
            assert server.stop() == 0

    def test_a_client_that_cannot_make_its_file_has_misses_and_is_told_why(
        self, run_dir: Path
    ) -> None:
        with serving(run_dir) as server:
            taken = take_all_inodes(run_dir)
            address = server.run_dir.bus_address
            with pytest.raises(bus.Unavailable, match="No space left on device"):
                CacheClient.connect(address, NAMESPACE, fail_open=False)
            with CacheClient.connect(address, NAMESPACE) as cache:
                assert store(cache, 2) == (0, 0)
                assert retrieve(cache, 2) == 0
                taken[0].unlink()
                assert wait_until(lambda: store(cache, 2)[0]) == 2
            assert server.stop() == 0

    def test_read_only_it_is_refused_with_a_sentence(self, run_dir: Path) -> None:
        remount(run_dir, "ro")
        done = Serving(run_dir).run()
        assert done.returncode == 2
        assert f"run directory {run_dir} cannot be used: Read-only file system" in done.stderr
        assert "Traceback" not in done.stderr


def take_all_inodes(path: Path) -> list[Path]:
    taken: list[Path] = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(path / f"taken{len(taken)}")
            taken[-1].touch()
    return taken[:-1]


class TestControlGroup:
    """A mount namespace has limit files of our own group in the place of the real ones, so that no
    group of this machine is touched."""

    @pytest.fixture(params=["v1", "v2"])
    def limited(self, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[str]]:
        """The limit's path as the server sees it, and what runs a command under it."""
        limit_bytes, used_bytes = 512 * MIB, 112 * MIB
        if request.param == "v1":
            lines = Path("/proc/self/cgroup").read_text().splitlines()
            paths = [line.split(":", 2)[2] for line in lines if ":memory:" in line]
            if not paths:
                pytest.skip("no memory controller of version 1 here")
            place, files = f"memory{paths[0]}", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            place, files = ".", ("memory.max", "memory.current")
        group = tmp_path / place
        group.mkdir(parents=True, exist_ok=True)
        for name, value in zip(files, (limit_bytes, used_bytes), strict=True):
            (group / name).write_text(f"{value}\n")
        script = 'mount --bind "$0" /sys/fs/cgroup && exec "$@"'
        prefix = ["unshare", "--mount", "sh", "-c", script, str(tmp_path)]
        if subprocess.run([*prefix, "true"], capture_output=True).returncode:
            pytest.skip("may not make a mount namespace")
        return Path("/sys/fs/cgroup", place, files[0]), prefix

    def test_more_than_it_allows_is_refused_with_its_name(
        self, limited: tuple[Path, list[str]], run_directory: Path
    ) -> None:
        limit, prefix = limited
        done = Serving(run_directory / "r", prefix=prefix, l1_size="401MiB").run()
        assert done.returncode == 2
        assert f"L1 of 401MiB does not fit: 400MiB are left ({limit})" in done.stderr

    def test_an_unset_size_is_half_of_what_it_leaves(
        self, limited: tuple[Path, list[str]], run_directory: Path
    ) -> None:
        _, prefix = limited
        with serving(run_directory / "r", prefix=prefix, l1_size=None) as server:
            assert server.status().l1.capacity_bytes == 200 * MIB
            assert server.stop() == 0
