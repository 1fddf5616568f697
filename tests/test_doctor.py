"""`lmcache-mp doctor`: every finding provoked with the real thing, a small mount or a low limit."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import lmcache_mp
from lmcache_mp.doctor import Finding, Verdict, limits, memory, places, versions
from lmcache_mp.doctor.mount import Mount
from lmcache_mp.doctor.server import health
from lmcache_mp.rundir import L1Files, RunDir
from lmcache_mp.units import Size
from tests.world import EngineProcess, unique_name

MIB = 1 << 20
SHM = Path("/dev/shm")
Doctor = Callable[..., tuple[int, dict[str, Finding]]]


def says(finding: Finding, verdict: Verdict, *words: str) -> None:
    """It is of that verdict, and found or change have these words."""
    assert finding.verdict == verdict, finding
    for word in words:
        assert word in f"{finding.found} -> {finding.change}", finding
    assert bool(finding.change) == (verdict != "ok")


@pytest.fixture
def doctor(run_directory: Path) -> Doctor:
    """Run the command; its exit code, and its rows by check."""

    def run(*flags: str, limited: str = "") -> tuple[int, dict[str, Finding]]:
        command = [sys.executable, "-m", "lmcache_mp", "doctor", "--json", "--http-port", "0"]
        command += ["--run-dir", str(run_directory / "r"), *flags]
        if limited:
            command = ["/bin/sh", "-c", f'{limited} && exec "$@"', "sh", *command]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        rows = msgspec.json.decode(done.stdout, type=list[Finding])
        return done.returncode, {row.check: row for row in rows}

    return run


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 8 MiB, as a container's /dev/shm is one of 64 MiB."""
    mounted = subprocess.run(
        [shutil.which("mount") or "mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", tmp_path],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"may not mount: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


class TestMemory:
    def test_a_tmpfs_with_room_is_ok(self) -> None:
        says(memory.l1_directory(SHM), "ok", "tmpfs")
        says(memory.l1_room(SHM, None), "ok", "left, bound by ")

    def test_a_small_tmpfs_is_named_with_the_flags_that_make_it_larger(
        self, small_tmpfs: Path
    ) -> None:
        says(memory.l1_directory(small_tmpfs), "advice", "8.0 MiB", "--shm-size", "medium: Memory")
        says(memory.l1_room(small_tmpfs, None), "advice", f"free space of {small_tmpfs}")
        says(memory.l1_room(small_tmpfs, 9 * MIB), "problem", "lower --l1-size from 9.0 MiB")

    def test_what_a_servers_own_l1_takes_is_not_missing(self, small_tmpfs: Path) -> None:
        (small_tmpfs / "l1").write_bytes(bytes(6 * MIB))
        says(memory.l1_room(small_tmpfs, 6 * MIB), "problem")
        says(memory.l1_room(small_tmpfs, 6 * MIB, own_bytes=6 * MIB), "advice")
        says(memory.l1_room(small_tmpfs, None, own_bytes=6 * MIB), "ok")

    def test_a_directory_on_a_disk_is_not_memory(self, tmp_path: Path) -> None:
        if Mount.of(tmp_path).filesystem in memory.IN_MEMORY:
            pytest.skip(f"{tmp_path} is in memory here")
        says(memory.l1_directory(tmp_path), "advice", "files on a disk", "--l1-dir")

    def test_a_directory_that_is_not_there_is_a_problem(self) -> None:
        says(memory.l1_directory(Path("/nowhere")), "problem", "/nowhere is no directory")
        says(memory.l1_room(Path("/nowhere"), MIB), "problem", "No such file")

    def test_huge_pages_are_the_mounts_unless_the_kernel_overrules(self, small_tmpfs: Path) -> None:
        usual = "always within_size advise [never] deny force"
        says(memory.huge_pages(small_tmpfs, usual), "advice", f"huge=advise {small_tmpfs}")
        says(memory.huge_pages(small_tmpfs, "never [force] deny"), "ok")
        says(memory.huge_pages(small_tmpfs, "never force [deny]"), "advice", "shmem_enabled")
        remount = ["mount", "-o", "remount,huge=advise", str(small_tmpfs)]
        if subprocess.run(remount, capture_output=True).returncode:
            pytest.skip("this kernel has no huge pages")
        says(memory.huge_pages(small_tmpfs, usual), "ok", "huge=advise")

    def test_an_old_kernel_populates_in_another_way(self) -> None:
        says(memory.kernel("5.13.19-generic"), "advice", "5.13.19", "5.14")
        says(memory.kernel("5.14.0-362.el9"), "ok")
        says(memory.kernel("6.1.0"), "ok")


class TestLimits:
    def test_few_descriptors_are_few_clients(self) -> None:
        says(limits.open_files(64), "problem", "ulimit -n")
        says(limits.open_files(250), "advice", "250: enough for 93 connections")
        says(limits.open_files(1024), "ok")
        says(limits.open_files(resource.RLIM_INFINITY), "ok", "unlimited")

    def test_locked_memory_is_for_those_who_register_l1(self) -> None:
        says(limits.locked_memory(8 * MIB, 16 * MIB), "advice", "RDMA", "memlock=-1")
        says(limits.locked_memory(8 * MIB, 8 * MIB), "ok")
        says(limits.locked_memory(resource.RLIM_INFINITY, 8 * MIB), "ok", "unlimited")

    def test_the_limits_of_the_shell_are_seen(self, doctor: Doctor) -> None:
        code, rows = doctor("--l1-size", "16MiB", limited="ulimit -n 40 && ulimit -l 64")
        assert code == 1
        says(rows["open files"], "problem", "40: enough for 0 connections")
        says(rows["locked memory"], "advice", "64.0 KiB, for an L1 of 16.0 MiB")


class TestPlaces:
    def test_a_run_directory_that_is_not_there_is_not_made(self, run_directory: Path) -> None:
        says(places.run_directory(RunDir(run_directory / "a" / "b")), "ok", "will be made")
        assert os.listdir(run_directory) == []

    def test_a_run_directory_that_others_may_write_to_is_a_problem(
        self, run_directory: Path
    ) -> None:
        says(places.run_directory(RunDir(run_directory)), "ok", str(run_directory))
        run_directory.chmod(0o777)
        says(places.run_directory(RunDir(run_directory)), "problem", "chmod 0700")

    @pytest.mark.parametrize("path", ["/proc/1/comm/x", "/tmp/" + "x" * 100])
    def test_a_run_directory_that_cannot_be_is_a_problem(self, path: str) -> None:
        says(places.run_directory(RunDir(Path(path))), "problem", path)

    def test_a_port_in_use_is_a_problem_with_the_flag_to_change(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            number = taken.getsockname()[1]
            found = places.port("http port", "--http-port", "127.0.0.1", number)
        says(found, "problem", f"{number} on 127.0.0.1 is in use", "another with --http-port")
        says(places.port("http port", "--http-port", "127.0.0.1", number), "ok")
        says(places.port("http port", "--http-port", "no.such.host.invalid", 1), "problem")
        says(places.port("http port", "--http-port", "203.0.113.7", 1), "problem", "assign")

    def test_l1_of_a_dead_server_is_named_with_the_command_that_frees_it(
        self, engine: EngineProcess
    ) -> None:
        directory, name = engine.l1_files.state.parent, engine.config.name
        assert name not in places.leftovers(directory, "another").found
        engine.kill()
        found = places.leftovers(directory, "another")
        says(found, "advice", f"16.0 MiB of {name!r}", f"lmcache-mp purge --name {name}")
        says(places.leftovers(directory, name), "advice", "adopt its own")

    def test_a_clean_directory_has_no_leftovers(self, tmp_path: Path) -> None:
        says(places.leftovers(tmp_path, "default"), "ok", f"none in {tmp_path}")
        L1Files.of(str(tmp_path), "it's").state.touch()
        says(places.leftovers(tmp_path, "x"), "advice", """purge --name 'it'"'"'s'""", "--l1-dir")


class TestVersions:
    def test_every_dependency_is_looked_at(self) -> None:
        rows = {row.check: row for row in versions.packages()}
        assert {"pyzmq", "msgspec", "uvicorn"} <= rows.keys()
        assert {row.verdict for row in rows.values()} == {"ok"}

    def test_what_is_too_old_or_missing_is_a_problem(self) -> None:
        says(versions.package("pyzmq", "9999.1"), "problem", "pip install 'pyzmq>=9999.1'")
        says(versions.package("no-such-package", "1"), "problem", "not installed")
        says(versions.libzmq("4.2.5"), "problem", "4.2.5, needed: 4.3")
        says(versions.libzmq(versions.installed_libzmq()), "ok")

    def test_a_project_that_is_not_installed_is_said_to_be(self) -> None:
        (row,) = versions.packages("no-such-package")
        says(row, "advice", "runs from a folder")


class TestServer:
    def test_one_of_another_version_or_in_need_is_told_so(self, engine: EngineProcess) -> None:
        report = engine.status()
        says(health(report, lmcache_mp.__version__), "ok", "is ready")
        says(health(report, "9.9"), "advice", "this command is 9.9", "--keep-l1")
        full = msgspec.structs.replace(report.l1, populate_error="the memory is full")
        says(health(msgspec.structs.replace(report, l1=full), "9.9"), "problem", "memory is full")
        died = msgspec.structs.replace(report.processes["engine"], restarts=2, note="was killed")
        restarted = msgspec.structs.replace(report, processes={"engine": died})
        says(health(restarted, lmcache_mp.__version__), "advice", "2 times: was killed")

    def test_its_own_memory_and_port_are_no_problem(self, engine: EngineProcess) -> None:
        with socket.create_server(("127.0.0.1", 0)) as http:
            done = doctor_of(engine, "--http-port", str(http.getsockname()[1]))
        assert done.returncode == 0, done.stdout
        rows = {row["check"]: row for row in json.loads(done.stdout)}
        assert rows["server"]["found"].startswith(f"'{engine.config.name}' ")
        assert "http port" not in rows

    def test_one_that_hangs_is_a_problem(self, run_directory: Path, doctor: Doctor) -> None:
        run_dir = RunDir(run_directory / "r")
        run_dir.create()
        descriptor = run_dir.lock("supervisor")
        try:
            code, rows = doctor()
        finally:
            os.close(descriptor)
        assert code == 1
        says(rows["server"], "problem", f"pid {os.getpid()} runs, but does not answer")


def doctor_of(engine: EngineProcess, *flags: str) -> subprocess.CompletedProcess[str]:
    which = ["--name", engine.config.name, "--run-dir", str(engine.run_dir.path)]
    size = ["--l1-size", str(Size(engine.config.l1_size or 0))]
    command = [sys.executable, "-m", "lmcache_mp", "doctor", "--json", *which, *size, *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def test_a_healthy_machine_ends_with_0_and_shows_people_a_table(run_directory: Path) -> None:
    flags = ["--name", unique_name(), "--run-dir", str(run_directory / "r"), "--http-port", "0"]
    command: list[Any] = [sys.executable, "-m", "lmcache_mp", "doctor", "--l1-size", "64MiB"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, ""), done
    for word in ("room for l1", "open files", "problems: 0", "-> "):
        assert word in done.stdout


def test_an_l1_that_cannot_fit_ends_with_1(doctor: Doctor) -> None:
    code, rows = doctor("--l1-size", "900TiB")
    assert code == 1
    says(rows["room for l1"], "problem", "lower --l1-size from 900.0 TiB")
