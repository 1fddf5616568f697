"""What a server refuses to live in: where others could put something in its place."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from lmcache_mp import access
from lmcache_mp.l1.segment import L1Unusable, open_store
from lmcache_mp.rundir import L1Files, RunDir, RunDirError
from tests.serving import as_root
from tests.world import unique_name

STRANGER = 12399


class TestRunDirectory:
    @as_root
    def test_one_of_somebody_else_is_refused(self, run_directory: Path) -> None:
        os.chown(run_directory, STRANGER, -1)
        with pytest.raises(RunDirError, match=f"belongs to uid {STRANGER}"):
            RunDir(run_directory).create()

    @pytest.mark.parametrize("mode", [0o720, 0o702, 0o770])
    def test_one_that_others_may_write_to_is_refused(self, run_directory: Path, mode: int) -> None:
        run_directory.chmod(mode)
        with pytest.raises(RunDirError, match=f"mode 0{mode:o}"):
            RunDir(run_directory).create()

    def test_one_that_everybody_can_replace_is_refused_before_it_is_made(
        self, run_directory: Path
    ) -> None:
        run_directory.chmod(0o777)
        with pytest.raises(RunDirError, match="put another in its place"):
            RunDir(run_directory / "a" / "r").create()
        assert list(run_directory.iterdir()) == []
        run_directory.chmod(0o1777)
        RunDir(run_directory / "a" / "r").create()

    def test_what_is_made_on_the_way_is_not_for_others_to_write_to(
        self, run_directory: Path
    ) -> None:
        previous = os.umask(0)
        try:
            RunDir(run_directory / "a" / "b" / "r").create()
        finally:
            os.umask(previous)
        assert stat.S_IMODE((run_directory / "a").stat().st_mode) == 0o755

    @as_root
    def test_a_link_of_somebody_else_on_the_way_is_refused(self, run_directory: Path) -> None:
        (run_directory / "there").mkdir(mode=0o700)
        link = run_directory / "link"
        link.symlink_to(run_directory / "there")
        RunDir(link).create()  # our own
        os.lchown(link, STRANGER, STRANGER)
        for path in (link, link / "r"):
            with pytest.raises(RunDirError, match=f"symbolic link of uid {STRANGER}"):
                RunDir(path).create()

    def test_clients_that_is_a_link_or_a_file_is_refused(self, run_directory: Path) -> None:
        run_directory.chmod(0o700)
        clients = run_directory / "clients"
        clients.symlink_to("/tmp")
        with pytest.raises(RunDirError, match="is no directory"):
            RunDir(run_directory).create()
        clients.unlink()
        clients.touch()
        with pytest.raises(RunDirError, match="is no directory"):
            RunDir(run_directory).create()

    def test_the_mode_that_an_operator_chose_is_left(self, run_directory: Path) -> None:
        run_directory.chmod(0o755)
        RunDir(run_directory).create()
        assert stat.S_IMODE(run_directory.stat().st_mode) == 0o755
        assert access.why_no_access(f"ipc://{run_directory}/bus.sock") == ""


class TestL1Files:
    """/dev/shm is everybody's, and the names are known."""

    @pytest.fixture
    def files(self, run_directory: Path) -> L1Files:
        return L1Files.of(str(run_directory), unique_name())

    def refused(self, files: L1Files, why: str) -> None:
        with pytest.raises(L1Unusable, match=why):
            open_store(files, 4 << 20, adopt=True)

    def test_a_link_in_the_place_of_the_state_file_is_not_followed(
        self, files: L1Files, run_directory: Path
    ) -> None:
        victim = run_directory / "victim"
        victim.write_text("precious")
        files.state.symlink_to(victim)
        self.refused(files, "cannot be made")
        files.state.unlink()
        os.link(victim, files.state)
        self.refused(files, "is not this server's own file")
        assert victim.read_text() == "precious"

    def test_a_pipe_there_holds_up_nobody(self, files: L1Files) -> None:
        os.mkfifo(files.state)
        self.refused(files, "is not this server's own file")

    @as_root
    def test_records_and_bytes_of_somebody_else_are_not_adopted(self, files: L1Files) -> None:
        open_store(files, 4 << 20, adopt=True).close()
        os.chown(files.segment, STRANGER, -1)
        store = open_store(files, 4 << 20, adopt=True)
        store.close()
        assert not store.adoptable
        os.chown(files.state, STRANGER, -1)
        self.refused(files, f"one of uid {STRANGER}")

    def test_a_directory_where_everybody_may_remove_files_is_refused(self, files: L1Files) -> None:
        files.state.parent.chmod(0o777)
        self.refused(files, "chmod [+]t")
