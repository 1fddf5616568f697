"""`--access-group`: who may use the cache, who may not, and what members cannot do to others."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lmcache_mp.config import Config
from lmcache_mp.doctor.sharing import sharing
from lmcache_mp.l1.segment import open_store
from lmcache_mp.liveness import (
    SWEEP_FILES,
    LifeLine,
    Sweep,
    is_locked,
    living_clients,
    open_lifeline,
)
from lmcache_mp.rundir import L1Files, RunDir
from tests.serving import Serving, as_root, as_user, serving
from tests.waiting import wait_until
from tests.world import EngineProcess, short_directory

USERS = 100  # a group of every Debian
SERVER, MEMBER, OTHER_MEMBER, STRANGER = 12300, 12345, 12346, 12399


def modes(server: Serving) -> list[str]:
    """Of the shared paths, and of the others."""
    run_dir = server.run_dir.path
    paths = [run_dir, run_dir / "clients", run_dir / "bus.sock", server.l1_files.segment]
    paths += [server.l1_files.state, run_dir / "config.json", run_dir / "engine.lock"]
    return [f"{stat.S_IMODE(path.stat().st_mode):o}" for path in paths]


def use(server: Serving, *prefix: str) -> str:
    """What a client of that user says."""
    command = [*prefix, sys.executable, "-m", "tests.store_and_retrieve"]
    done = subprocess.run(
        [*command, server.run_dir.bus_address], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done
    return done.stdout.strip()


@contextlib.contextmanager
def held(server: Serving, *prefix: str) -> Iterator[subprocess.Popen[str]]:
    """A client of that user that holds a lease."""
    command = [*prefix, sys.executable, "-m", "tests.store_and_retrieve"]
    client = subprocess.Popen(
        [*command, server.run_dir.bus_address, "hold"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert client.stdout is not None
        assert client.stdout.readline().startswith("stored")
        yield client
    finally:
        client.kill()
        client.communicate()


@pytest.fixture
def open_directory(run_directory: Path) -> Path:
    """A fresh directory that everybody may pass through."""
    run_directory.chmod(0o755)
    return run_directory


@as_root
class TestMembers:
    def test_store_and_retrieve_under_another_user_and_strangers_are_told_why_not(
        self, open_directory: Path
    ) -> None:
        with serving(open_directory / "r", "--access-group", "users") as server:
            assert modes(server) == ["750", "3730", "660", "660", "600", "600", "600"]
            assert use(server, *as_user(MEMBER, USERS)) == "stored 2 retrieved 2"
            assert use(server, *as_user(OTHER_MEMBER, USERS)) == "stored 0 retrieved 2"
            said = use(server, *as_user(STRANGER))
            assert f"uid {STRANGER} may not look into {server.run_dir.path}" in said
            assert "member of its --access-group" in said
            assert server.check() == []
            assert server.stop() == 0

    def test_a_server_that_is_not_root_sees_its_clients_live_and_die(
        self, open_directory: Path
    ) -> None:
        (open_directory / "s").mkdir()
        os.chown(open_directory / "s", SERVER, SERVER)
        flags = ("--access-group", "users")
        prefix = as_user(SERVER, USERS)
        with serving(open_directory / "s" / "r", *flags, prefix=prefix) as server:
            assert modes(server) == ["750", "3730", "660", "660", "600", "600", "600"]
            with held(server, *as_user(MEMBER, USERS)) as client:
                assert server.status().l1.leased_chunks == 2
                client.kill()
                wait_until(lambda: server.status().l1.leased_chunks == 0)
            assert list(server.run_dir.clients.iterdir()) == []
            assert use(server) == "stored 0 retrieved 2"  # root's file is in the group too
            assert server.stop() == 0

    def test_leases_of_members_outlive_the_engine(self, open_directory: Path) -> None:
        with serving(open_directory / "r", "--access-group", "users") as server:
            with held(server, *as_user(MEMBER, USERS)) as client:
                epoch, pid = server.status().epoch, server.status().processes["engine"].pid
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda: succeeded(server, epoch))
                assert server.status().l1.leased_chunks == 2
                client.kill()
                wait_until(lambda: server.status().l1.leased_chunks == 0)
            assert server.stop() == 0

    def test_modes_follow_the_setting_from_start_to_start(self, open_directory: Path) -> None:
        run_dir = RunDir(open_directory / "r")
        for group, wanted in ((None, "700 700"), (USERS, "750 3730"), (None, "700 700")):
            run_dir.create(group)
            found = [stat.S_IMODE(p.stat().st_mode) for p in (run_dir.path, run_dir.clients)]
            assert "{:o} {:o}".format(*found) == wanted
            if group is not None:
                assert {run_dir.path.stat().st_gid, run_dir.clients.stat().st_gid} == {USERS}

    def test_an_adopted_segment_is_opened_and_closed_too(self, run_directory: Path) -> None:
        files = L1Files.of(str(run_directory), "a")
        for group, wanted in ((None, 0o600), (USERS, 0o660), (None, 0o600)):
            store = open_store(files, 4 << 20, adopt=True, group=group)
            store.close()
            assert stat.S_IMODE(files.segment.stat().st_mode) == wanted
            assert stat.S_IMODE(files.state.stat().st_mode) == 0o600

    def test_an_unknown_group_and_one_of_others_are_refused_at_start(
        self, open_directory: Path
    ) -> None:
        done = Serving(open_directory / "r", "--access-group", "no-such-group").run()
        assert done.returncode == 2
        assert "there is no group 'no-such-group'" in done.stderr
        (open_directory / "s").mkdir()
        os.chown(open_directory / "s", SERVER, SERVER)
        server = Serving(
            open_directory / "s" / "r", "--access-group", "users", prefix=as_user(SERVER)
        )
        done = server.run()
        assert done.returncode == 2
        assert f"uid {SERVER} must be a member of it" in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_way_that_is_closed_to_members_is_said_at_start_and_by_the_doctor(
        self, run_directory: Path
    ) -> None:
        with serving(run_directory / "r", "--access-group", "users") as server:
            assert f"members of group users cannot reach {run_directory}/r" in server.log
            found = sharing(Config(access_group="users"), server.run_dir)
            assert found.verdict == "advice"
            assert f"{run_directory} keeps these from" in found.found


def succeeded(server: Serving, epoch: int) -> bool:
    with contextlib.suppress(Exception):
        return server.status().epoch != epoch
    return False


class TestDoctor:
    def test_right_modes_are_ok_and_wrong_ones_a_problem(self, engine: EngineProcess) -> None:
        assert sharing(engine.config, engine.run_dir).verdict == "ok"
        engine.l1_files.segment.chmod(0o666)
        found = sharing(engine.config, engine.run_dir)
        assert (found.verdict, "has mode 0666, not 0600" in found.found) == ("problem", True)

    def test_an_unknown_group_is_a_problem(self, run_directory: Path) -> None:
        found = sharing(Config(access_group="no-such-group"), RunDir(run_directory))
        assert (found.verdict, "groupadd" in found.change) == ("problem", True)


READ_LOCK = struct.Struct("hhqqi4x").pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)


class TestHostileMembers:
    @pytest.fixture
    def clients(self) -> Iterator[Path]:
        with short_directory() as path:
            yield path

    def test_a_lock_for_reading_keeps_nobody_alive(self, clients: Path) -> None:
        lifeline = LifeLine.create(clients)
        path = clients / lifeline.client_id.hex()
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        ours = open_lifeline(clients, lifeline.client_id)
        assert ours is not None
        theirs = os.open(path, os.O_RDONLY)
        try:
            assert is_locked(ours)
            lifeline.close()
            fcntl.fcntl(theirs, fcntl.F_OFD_SETLK, READ_LOCK)
            assert not is_locked(ours)
            with pytest.raises(
                OSError, match="Bad file descriptor"
            ):  # that takes the right to write
                fcntl.fcntl(
                    theirs,
                    fcntl.F_OFD_SETLK,
                    struct.Struct("hhqqi4x").pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0),
                )
        finally:
            os.close(ours)
            os.close(theirs)

    @pytest.mark.parametrize("plant", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc", path)])
    def test_what_is_no_file_is_no_client_and_holds_up_nobody(
        self, clients: Path, plant: Callable[[Path], None]
    ) -> None:
        client_id = os.urandom(16)
        plant(clients / client_id.hex())
        assert open_lifeline(clients, client_id) is None
        assert living_clients(clients) == set()
        with contextlib.closing(Sweep(clients)) as sweep:
            sweep.step(besides=())

    def test_a_sweep_looks_at_so_many_files_at_a_time_and_at_all_in_the_end(
        self, clients: Path
    ) -> None:
        for number in range(3 * SWEEP_FILES):
            (clients / f"{number:032x}").touch()
        lifeline = LifeLine.create(clients)
        left = []
        with contextlib.closing(Sweep(clients)) as sweep:
            for _ in range(4):
                sweep.step(besides=())
                left.append(len(os.listdir(clients)))
        assert left[0] >= 2 * SWEEP_FILES
        assert left[-1] == 1
        assert living_clients(clients) == {lifeline.client_id}
        lifeline.close()

    def test_a_directory_in_the_place_of_its_file_does_not_keep_a_client_in_the_books(
        self, engine: EngineProcess
    ) -> None:
        with engine.client() as cache:
            cache.lookup(cache.chunk_keys(range(8)))
            (own,) = engine.run_dir.clients.iterdir()
            own.unlink()
            own.mkdir()
        wait_until(lambda: engine.status().clients == [])
        with engine.client() as cache:
            assert cache.lookup(cache.chunk_keys(range(8))).hit_chunks == 0

    def test_an_engine_among_a_thousand_planted_files_starts_and_serves(
        self, engine: EngineProcess
    ) -> None:
        engine.kill()
        clients = engine.run_dir.clients
        planted = [LifeLine.create(clients) for _ in range(50)]
        for number in range(1000):
            os.mkfifo(clients / f"{number:032x}")
        engine.start()
        descriptors = len(os.listdir(f"/proc/{engine.process.pid}/fd")) if engine.process else 0
        assert descriptors < 50  # who holds nothing is not watched
        with engine.client() as cache:
            assert cache.lookup(cache.chunk_keys(range(8))).hit_chunks == 0
        for lifeline in planted:
            lifeline.close()
