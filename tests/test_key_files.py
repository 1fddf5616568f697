"""`lmcache-mp keys` and the files it makes, by hand as an operator would."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import zmq.auth

from lmcache_mp.key_files import (
    AllowedClients,
    KeyDirectory,
    KeyFileError,
    client_curve,
    curve_for,
)
from tests.test_cli import CLEAN, refused

UNPRIVILEGED_UID = 65534


def keys(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lmcache_mp", "keys", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=CLEAN, capture_output=True, text=True, timeout=30)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def directory(tmp_path: Path) -> KeyDirectory:
    """A server's keys, and one client's in `alice.key_secret` beside them."""
    directory = KeyDirectory(tmp_path / "keys")
    directory.make(replace=False)
    directory.make_client("alice", tmp_path / "alice.key_secret", replace=False)
    return directory


# --- by hand -------------------------------------------------------------------------------------


def test_an_operator_makes_a_server_and_lets_a_client_in(tmp_path: Path) -> None:
    made = keys("server", "k", cwd=tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    assert f"lmcache-mp keys client {tmp_path}/k NAME" in made.stdout
    assert f"--bus-keys {tmp_path}/k" in made.stdout
    made = keys("client", "k", "alice", cwd=tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    assert f"{tmp_path}/alice.key_secret" in made.stdout
    assert f"{tmp_path}/k/clients/alice.key" in made.stdout
    directory = KeyDirectory(tmp_path / "k")
    server, alice = directory.server_curve(), client_curve(tmp_path / "alice.key_secret")
    assert server.admits(alice.public_key)
    assert alice.server_key == zmq.curve_public(server.secret_key)
    assert alice.public_key == zmq.curve_public(alice.secret_key)
    for secret in (server.secret_key, alice.secret_key):
        assert secret.decode() not in made.stdout
        assert secret.decode() not in repr((server, alice))


def test_nothing_made_can_be_read_by_others_whatever_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        keys("server", "k", cwd=tmp_path)
        keys("client", "k", "alice", cwd=tmp_path)
    finally:
        os.umask(previous)
    assert {mode(path) for path in (tmp_path / "k", tmp_path / "k" / "clients")} == {0o700}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == [
        "alice.key",
        "alice.key_secret",
        "server.key",
        "server.key_secret",
    ]
    assert {mode(path) for path in files} == {0o600}


def test_a_server_that_exists_is_replaced_only_when_told(tmp_path: Path) -> None:
    keys("server", "k", cwd=tmp_path)
    before = (tmp_path / "k" / "server.key_secret").read_bytes()
    assert "server.key_secret exists" in refused(keys("server", "k", cwd=tmp_path), 2)
    assert (tmp_path / "k" / "server.key_secret").read_bytes() == before
    assert keys("server", "k", "--replace", cwd=tmp_path).returncode == 0
    assert (tmp_path / "k" / "server.key_secret").read_bytes() != before
    server = KeyDirectory(tmp_path / "k").server_curve()
    public, _ = zmq.auth.load_certificate(tmp_path / "k" / "server.key")
    assert public == zmq.curve_public(server.secret_key)


def test_a_client_that_exists_is_replaced_only_when_told(tmp_path: Path) -> None:
    keys("server", "k", cwd=tmp_path)
    keys("client", "k", "alice", cwd=tmp_path)
    old = client_curve(tmp_path / "alice.key_secret")
    again = keys("client", "k", "alice", "--out", "other", cwd=tmp_path)
    assert "alice.key exists" in refused(again, 2)
    assert not (tmp_path / "other").exists()
    assert "alice.key_secret exists" in refused(
        keys("client", "k", "bob", "--out", "alice.key_secret", cwd=tmp_path), 2
    )
    assert not (tmp_path / "k" / "clients" / "bob.key").exists()
    assert keys("client", "k", "alice", "--replace", cwd=tmp_path).returncode == 0
    new, admits = (
        client_curve(tmp_path / "alice.key_secret"),
        KeyDirectory(tmp_path / "k").server_curve().admits,
    )
    assert admits(new.public_key)
    assert not admits(old.public_key)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("client", "k"), "a client has a name"),
        (("server", "k", "alice"), "takes neither a NAME nor --out"),
        (("client", "k", "../alice"), "client name '../alice'"),
        (("client", "k", ".alice"), "client name '.alice'"),
        (("client", "nowhere", "alice"), "make one with `lmcache-mp keys server"),
        (("client", "k", "alice", "--out", "/nowhere/alice"), "cannot write /nowhere/alice"),
        (("server", "/proc/keys"), "cannot make /proc/keys"),
    ],
)
def test_what_cannot_be_made_is_refused_with_a_sentence(
    tmp_path: Path, words: tuple[str, ...], sentence: str
) -> None:
    KeyDirectory(tmp_path / "k").make(replace=False)
    assert sentence in refused(keys(*words, cwd=tmp_path), 2)
    assert list((tmp_path / "k" / "clients").iterdir()) == []


# --- other tools ---------------------------------------------------------------------------------


def test_zeromqs_own_tools_read_what_was_made(directory: KeyDirectory, tmp_path: Path) -> None:
    alice = client_curve(tmp_path / "alice.key_secret")
    read = zmq.auth.load_certificate(tmp_path / "alice.key_secret")
    assert read == (alice.public_key, alice.secret_key)
    assert zmq.auth.load_certificates(directory.clients) == {alice.public_key: True}


def test_a_certificate_that_pyzmq_made_is_let_in(directory: KeyDirectory, tmp_path: Path) -> None:
    public_file, secret_file = zmq.auth.create_certificates(tmp_path, "bob")
    public, secret = zmq.auth.load_certificate(secret_file)
    os.rename(public_file, directory.clients / "bob.key")
    assert directory.server_curve().admits(public)
    os.chmod(secret_file, 0o600)
    with pytest.raises(KeyFileError, match=r"no line `server-key.*below `metadata`"):
        client_curve(Path(secret_file))
    server_key = client_curve(tmp_path / "alice.key_secret").server_key
    text = Path(secret_file).read_text()
    line = f'metadata\n    server-key = "{server_key.decode()}"\n'
    Path(secret_file).write_text(text.replace("metadata\n", line))
    bob = client_curve(Path(secret_file))
    assert (bob.public_key, bob.secret_key, bob.server_key) == (public, secret, server_key)


# --- who may read and write them -----------------------------------------------------------------


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o644])
def test_a_secret_that_others_can_read_is_refused_with_what_to_do(
    directory: KeyDirectory, tmp_path: Path, bits: int
) -> None:
    for path in (directory.server_secret, tmp_path / "alice.key_secret"):
        path.chmod(bits)
    for path, load in (
        (directory.server_secret, directory.server_curve),
        (tmp_path / "alice.key_secret", lambda: client_curve(tmp_path / "alice.key_secret")),
    ):
        with pytest.raises(KeyFileError) as refusal:
            load()
        assert str(refusal.value) == (
            f"{path} has mode {bits:04o}, others may read it: chmod 0600 {path}"
        )


def test_a_directory_that_others_can_write_to_is_refused(directory: KeyDirectory) -> None:
    for path in (directory.clients, directory.path):
        path.chmod(0o770)
        with pytest.raises(KeyFileError, match=f"others may write to it: chmod 0700 {path}$"):
            directory.server_curve()
        path.chmod(0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_another_user_are_refused(directory: KeyDirectory, tmp_path: Path) -> None:
    for path, load in (
        (tmp_path / "alice.key_secret", lambda: client_curve(tmp_path / "alice.key_secret")),
        (directory.server_secret, directory.server_curve),
        (directory.path, directory.server_curve),
    ):
        os.chown(path, UNPRIVILEGED_UID, -1)
        with pytest.raises(KeyFileError, match=f"{path} belongs to uid {UNPRIVILEGED_UID}"):
            load()
        os.chown(path, 0, -1)


@pytest.mark.parametrize(
    "text",
    ["", "curve\n", 'curve\n    public-key = "short"\n', "\0" * 1000, '    secret-key = "x"\n'],
)
def test_a_file_that_is_no_certificate_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match=f"key file {path} has no line"):
        client_curve(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file"):
        client_curve(tmp_path / "missing")


def test_a_socket_file_needs_no_key_and_a_tcp_address_without_one_tries(tmp_path: Path) -> None:
    assert curve_for("ipc:///run/bus.sock", tmp_path / "missing") is None
    assert curve_for("tcp://10.0.0.1:5555", None) is None
    with pytest.raises(KeyFileError):
        curve_for("tcp://10.0.0.1:5555", tmp_path / "missing")


# --- the list ------------------------------------------------------------------------------------


def test_the_list_follows_its_directory(directory: KeyDirectory, tmp_path: Path) -> None:
    allowed = AllowedClients(directory.clients)
    alice = client_curve(tmp_path / "alice.key_secret").public_key
    assert allowed(alice)
    directory.make_client("bob", tmp_path / "bob", replace=False)
    bob = client_curve(tmp_path / "bob").public_key
    assert allowed(alice)
    assert allowed(bob)
    (directory.clients / "alice.key").rename(directory.clients / "alice.key.off")
    assert not allowed(alice)
    assert allowed(bob)
    (directory.clients / "bob.key").unlink()
    assert not allowed(bob)


def test_a_file_that_cannot_be_used_lets_in_nobody_and_hinders_nobody(
    directory: KeyDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alice = client_curve(tmp_path / "alice.key_secret").public_key
    writable = directory.clients / "mallory.key"
    mallory = zmq.curve_keypair()[0]
    writable.write_text(f'curve\n    public-key = "{mallory.decode()}"\n')
    writable.chmod(0o666)
    (directory.clients / "broken.key").write_bytes(b"\xff\xfe")
    (directory.clients / "dangling.key").symlink_to("nowhere")
    (directory.clients / "folder.key").mkdir()
    (directory.clients / "notes.txt").write_text("not a key")
    allowed = AllowedClients(directory.clients)
    assert allowed(alice)
    assert not allowed(mallory)
    assert allowed(alice)
    for name in ("mallory", "broken", "dangling", "folder"):
        assert f"{directory.clients}/{name}.key" in caplog.text
    assert "mallory.key has mode 0666, others may write to it" in caplog.text
    assert "notes.txt" not in caplog.text
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 4  # once, not each time


def test_without_its_directory_the_list_says_so(directory: KeyDirectory, tmp_path: Path) -> None:
    allowed = AllowedClients(directory.clients)
    alice = client_curve(tmp_path / "alice.key_secret").public_key
    assert allowed(alice)
    directory.clients.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError):
        allowed(alice)
