"""The token file of HTTP: what it must be, and that changing it needs no restart."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from lmcache_mp import token_file
from tests.asker import GOOD, LOOPBACK, TOKEN, Asker
from tests.test_cli import Server, refused, run
from tests.waiting import wait_until


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good token file."""
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(f"{TOKEN}\n")
    return path


def rewrite(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace a file, as one does who may not show half of it."""
    draft = path.with_suffix(".new")
    draft.write_text(text)
    draft.chmod(mode)
    draft.replace(path)


def test_a_changed_token_counts_from_the_next_request_on(file: Path, tmp_path: Path) -> None:
    server = Asker(tmp_path, LOOPBACK, file)
    assert server.ask("POST", "/conf", headers=GOOD).status_code == 200
    rewrite(file, TOKEN[::-1])
    assert server.ask("POST", "/conf", headers=GOOD).status_code == 401
    other = {"Authorization": f"Bearer {TOKEN[::-1]}"}
    assert server.ask("POST", "/conf", headers=other).status_code == 200


@pytest.mark.parametrize("harm", ["gone", "loosened", "emptied", "directory"])
def test_while_the_file_cannot_be_used_all_stays_closed_and_the_log_says_so_once(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    server = Asker(tmp_path, LOOPBACK, file)
    kept = file.rename(file.with_suffix(".kept"))
    if harm == "loosened":
        rewrite(file, TOKEN, 0o640)
    elif harm == "emptied":
        rewrite(file, "")
    elif harm == "directory":
        file.mkdir(mode=0o700)
    for _ in range(3):
        answer = server.ask("POST", "/conf", headers=GOOD)
        assert answer.status_code == 503
        assert "log of the http process" in answer.json()["error"]
    assert server.ask("GET", "/conf").status_code == 200
    assert sum("http changes are closed" in line for line in caplog.messages) == 1
    assert str(file) in caplog.text
    if harm == "directory":
        file.rmdir()
    kept.replace(file)
    assert server.ask("POST", "/conf", headers=GOOD).status_code == 200


BAD_FILES = [
    ("short", 0o600, "holds 5 characters, a token has at least 16: openssl rand -hex 32 > {path}"),
    ("", 0o600, "is empty: openssl rand -hex 32 > {path}"),
    (f"{TOKEN}\n{TOKEN}\n", 0o600, "holds more than one line: a token is one line"),
    ("a token with spaces in it", 0o600, "holds a character that a token cannot have"),
    ("x" * 5000, 0o600, "holds more than 4096 characters: it is no token"),
    (TOKEN, 0o640, "has mode 0640, others may use it: chmod 0600 {path}"),
    (TOKEN, 0o604, "has mode 0604, others may use it: chmod 0600 {path}"),
]


@pytest.mark.parametrize(("text", "mode", "sentence"), BAD_FILES)
def test_a_bad_token_file_is_a_sentence_that_shows_no_token(
    tmp_path: Path, text: str, mode: int, sentence: str
) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(token_file.TokenFileError) as raised:
        token_file.read(str(path))
    expected = f"--http-token-file {path} {sentence.format(path=path)}"
    assert str(raised.value).startswith(expected)
    assert TOKEN not in str(raised.value)


@pytest.fixture
def odd_places(tmp_path: Path) -> list[Path]:
    os.mkfifo(tmp_path / "fifo", 0o600)
    return [tmp_path / "missing", tmp_path, tmp_path / "fifo", Path("/dev/null")]


def test_what_is_no_file_is_no_token_file(odd_places: list[Path]) -> None:
    for path in odd_places:
        with pytest.raises(token_file.TokenFileError, match=str(path)):
            token_file.read(str(path))


def test_the_longest_and_the_shortest_token_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "token"
    for size in (token_file.MIN_CHARACTERS, token_file.MAX_CHARACTERS - 1):
        rewrite(path, "x" * size + "\n")
        found = token_file.read(str(path))
        assert found.token == b"x" * size
        assert "xxx" not in repr(found)


def test_a_server_is_not_started_with_a_bad_one(tmp_path: Path) -> None:
    run_dir = tmp_path / "r"
    flags = ("--run-dir", str(run_dir), "--http-token-file", str(tmp_path / "missing"))
    sentence = refused(run("serve", *flags), 2)
    assert sentence == f"{flags[2]} {flags[3]} cannot be read: No such file or directory"
    assert not run_dir.exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_a_whole_server_without_one_is_as_open_as_its_address(host: str) -> None:
    server = Server("--http-host", host)
    try:
        port = server.ready().processes["http"].address.rpartition(":")[2]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            wait_until(lambda: http.get("/healthcheck").status_code == 200)
            is_open = http.post("/clear-cache").status_code == 200
        assert server.stop() == 0
        assert is_open is (host == "127.0.0.1")
        assert ("listens beyond the loopback" in server.log.read_text()) is not is_open
    finally:
        server.end()
