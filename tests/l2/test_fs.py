"""The `fs` adapter on directories as operators have them: good ones, and all kinds of bad ones."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lmcache_mp.l2 import AdapterError
from lmcache_mp.l2.fs import Adapter, Config
from lmcache_mp.testing import check_l2_adapter
from lmcache_mp.units import Size
from tests.l2.fs_world import (
    PAGE,
    Chunk,
    aligned,
    mounted,
    object_file,
    object_files,
    opened,
    refused,
    remount,
    unfinished_files,
    wait_scanned,
)
from tests.world import short_directory


@pytest.fixture(params=["cached", "direct"])
def direct(request: pytest.FixtureRequest, tmp_path: Path) -> bool:
    wanted = bool(request.param == "direct")
    if wanted:
        try:
            os.close(os.open(tmp_path / "probe", os.O_RDWR | os.O_CREAT | os.O_DIRECT))
        except OSError as fault:
            pytest.skip(f"the filesystem of {tmp_path} does not take O_DIRECT: {fault}")
        (tmp_path / "probe").unlink()
    return wanted


@pytest.fixture
def world_readable() -> Iterator[Path]:
    with short_directory() as path:
        path.chmod(0o755)
        yield path


@pytest.mark.parametrize("capacity", [None, Size("64MiB")])
def test_keeps_the_contract(tmp_path: Path, direct: bool, capacity: Size | None) -> None:
    config = Config(path=str(tmp_path), direct=direct, capacity=capacity)
    check_l2_adapter(lambda: Adapter(config))
    assert object_files(tmp_path) == unfinished_files(tmp_path) == []


def test_objects_of_many_parts_come_back_whole(tmp_path: Path, direct: bool) -> None:
    memory = [part for _ in range(700) for part in aligned(2 * PAGE)]  # more than IOV_MAX
    for number, part in enumerate(memory):
        part[:] = number.to_bytes(2, "big") * (PAGE // 2)
    key = bytes(range(32))
    with opened(tmp_path, direct=direct) as adapter:
        adapter.store(key, memory)
        back = [part for _ in range(700) for part in aligned(2 * PAGE)]
        assert adapter.load(key, back) == len(memory) * PAGE
    assert back == memory


def test_many_threads_store_and_load_at_a_time(tmp_path: Path, direct: bool) -> None:
    chunks = [Chunk() for _ in range(100)]
    with opened(tmp_path, direct=direct) as adapter, ThreadPoolExecutor(8) as pool:

        def store(chunk: Chunk) -> None:
            adapter.store(chunk.key, chunk.parts)

        def load(chunk: Chunk) -> bool:
            return chunk.is_in(adapter)

        assert list(pool.map(store, chunks * 2)) == [None] * 200
        assert all(pool.map(load, chunks))
        assert sorted(adapter.scan()) == sorted(chunk.key for chunk in chunks)
        wait_scanned(adapter)
        assert adapter.figures()["objects"] == 100
        assert adapter.figures()["used_bytes"] == 100 * 4 * PAGE
    assert unfinished_files(tmp_path) == []


def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    chunk = Chunk()
    with opened(tmp_path) as adapter:
        adapter.store(chunk.key, chunk.parts)
        inode = object_file(tmp_path, chunk.key).stat().st_ino
        adapter.store(chunk.key, chunk.parts)
    assert object_file(tmp_path, chunk.key).stat().st_ino == inode


def test_only_its_user_may_read_the_files(tmp_path: Path) -> None:
    chunk = Chunk()
    with opened(tmp_path) as adapter:
        adapter.store(chunk.key, chunk.parts)
    file = object_file(tmp_path, chunk.key)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("length", [0, 1, PAGE, 4 * PAGE - 1, 5 * PAGE])
def test_a_file_of_another_length_says_its_length_and_is_written_anew(
    tmp_path: Path, direct: bool, length: int
) -> None:
    chunk = Chunk()
    with opened(tmp_path, direct=direct) as adapter:
        adapter.store(chunk.key, chunk.parts)
        os.truncate(object_file(tmp_path, chunk.key), length)
        assert adapter.load(chunk.key, aligned(chunk.size)) == length
        assert adapter.figures()["used_bytes"] == length
        adapter.store(chunk.key, chunk.parts)
        assert chunk.is_in(adapter)
        assert adapter.figures()["used_bytes"] == chunk.size


def test_foreign_files_are_neither_objects_nor_removed(tmp_path: Path) -> None:
    chunk = Chunk(bytes([0xAB]) + bytes(31))
    foreign = [
        tmp_path / "README",
        tmp_path / "cd" / chunk.key.hex(),  # in the wrong directory
        tmp_path / "ab" / "ab12",
        tmp_path / "ab" / chunk.key.hex().upper(),
        tmp_path / "ab" / (chunk.key.hex()[:-1] + "z"),
        tmp_path / "ab" / f".{chunk.key.hex()}",
        tmp_path / "ab" / f".{chunk.key.hex()}.swp",
        tmp_path / "ab" / ".nfs0000000000000001",
    ]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
        os.utime(path, (0, 0))
    with opened(tmp_path, capacity=4 * PAGE) as adapter:
        wait_scanned(adapter)
        assert list(adapter.scan()) == []
        assert adapter.figures()["objects"] == 0
        for other in [chunk, Chunk(), Chunk()]:  # evicting
            adapter.store(other.key, other.parts)
    assert all(path.read_bytes() == b"mine" for path in foreign)


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    chunk = Chunk()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(chunk.bytes)
    kv = tmp_path / "kv"
    link = object_file(kv, chunk.key)
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    with opened(kv) as adapter:
        wait_scanned(adapter)
        assert adapter.lookup([chunk.key]) == [False]
        assert not chunk.is_in(adapter)
        assert list(adapter.scan()) == []
        assert adapter.figures()["objects"] == 0
        adapter.store(chunk.key, chunk.parts)  # in the link's place
        assert chunk.is_in(adapter)
    assert not link.is_symlink()
    link.unlink()
    link.parent.rmdir()
    link.parent.symlink_to(tmp_path)
    refused(kv, match=r"is not a directory: remove it")


def test_a_directory_emptied_by_hand_is_used_again(tmp_path: Path) -> None:
    chunk = Chunk()
    with opened(tmp_path) as adapter:
        adapter.store(chunk.key, chunk.parts)
        subprocess.run(["rm", "-r", str(tmp_path / chunk.key.hex()[:2])], check=True)
        assert not chunk.is_in(adapter)
        assert adapter.figures()["objects"] == 0
        adapter.store(chunk.key, chunk.parts)
        assert chunk.is_in(adapter)


def test_a_directory_that_is_taken_away_is_said_so(tmp_path: Path) -> None:
    kv = tmp_path / "kv"
    kv.mkdir()
    chunk = Chunk()
    with opened(kv) as adapter:
        wait_scanned(adapter)
        subprocess.run(["rm", "-r", str(kv)], check=True)
        assert adapter.lookup([chunk.key]) == [False]
        with pytest.raises(AdapterError, match=r"cannot write .*: No such file.*mkdir") as caught:
            adapter.store(chunk.key, chunk.parts)
    assert caught.value.lasting


def test_a_missing_directory_is_not_made(tmp_path: Path) -> None:
    refused(tmp_path / "mistyped", match=r"No such file.*: mount it, or create it with: mkdir")
    assert not (tmp_path / "mistyped").exists()


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(tmp_path / "file", match=r"Not a directory: name a directory")


def test_a_directory_that_everybody_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    refused(tmp_path, match=r"everybody may write to .*: chmod o-w")


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_another_users_directory_is_refused(world_readable: Path) -> None:
    os.seteuid(65534)
    try:
        refused(world_readable, match=r"Permission denied: give it to uid 65534")
    finally:
        os.seteuid(0)


def test_a_read_only_directory_is_refused_at_start(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path, "ro,mode=0700") as place:
        refused(place, match=r"Read-only file system: mount it read-write")


def test_a_directory_that_becomes_read_only_still_serves(tmp_path: Path) -> None:
    chunk, other = Chunk(), Chunk()
    with (
        mounted("tmpfs", tmp_path, "mode=0700") as place,
        opened(place) as adapter,
    ):
        adapter.store(chunk.key, chunk.parts)
        remount(place, "ro")
        assert chunk.is_in(adapter)
        with pytest.raises(AdapterError, match=r"cannot write .*Read-only") as caught:
            adapter.store(other.key, other.parts)
        assert caught.value.lasting
        with pytest.raises(AdapterError, match=r"cannot remove .*Read-only"):
            adapter.delete([chunk.key])
        remount(place, "rw")
        adapter.store(other.key, other.parts)
        assert other.is_in(adapter)


def test_a_filesystem_that_refuses_direct_io_is_said_so(tmp_path: Path) -> None:
    chunk = Chunk()
    with mounted("ramfs", tmp_path, "mode=0700") as place:
        refused(place, direct=True, match=r"does not take O_DIRECT: leave `direct` out")
        with opened(place) as adapter:  # it does not say how large it is, either
            adapter.store(chunk.key, chunk.parts)
            assert chunk.is_in(adapter)


def test_a_disk_that_cannot_be_read_is_an_error_and_no_miss(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with open(disk, "wb") as file:
        file.truncate(16 << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(disk)], check=True)
    except FileNotFoundError:
        pytest.skip("needs mkfs.ext4")
    chunks = [Chunk(pages=64) for _ in range(8)]
    with (
        mounted("ext4", tmp_path, "loop", str(disk)) as place,
        opened(place, direct=True) as adapter,
    ):
        for chunk in chunks:
            adapter.store(chunk.key, chunk.parts)
        subprocess.run(["sync", "-f", str(place)], check=True)
        os.truncate(disk, 1 << 20)  # the disk has lost its end
        with pytest.raises(AdapterError, match=r"cannot read .*/[0-9a-f]{64}: Input/output error"):
            [chunk.is_in(adapter) for chunk in chunks]
        os.truncate(disk, 16 << 20)  # for umount; what was there is zeros now
