"""The files of CURVE keys: certificates in ZPL (rfc.zeromq.org/spec/4), as ZeroMQ has them.

    <bus_keys>/server.key_secret   the server's pair
    <bus_keys>/server.key          its public half
    <bus_keys>/clients/NAME.key    the public half of a client that may connect
    NAME.key_secret                for that client alone: its pair, and the server's public key

A client is let in while its file is in `clients`: each new connection looks. What is secret is 0600
from the moment it exists, and is refused if others can read it.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

import zmq

from bus import ClientCurve, ServerCurve
from lmcache_mp.logging import init_logger
from lmcache_mp.setting import ConfigError

log = init_logger(__name__)

MAX_FILE_BYTES = 65536
_FIELD = re.compile(r"^\s*(public-key|secret-key|server-key)\s*=\s*[\"']?([^\"'\s]*)", re.MULTILINE)
_Z85 = re.compile(r"[0-9A-Za-z.:+=^!/*?&<>()\[\]{}@%$#-]{40}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_READABLE, _WRITABLE = 0o077, 0o022  # by others


class KeyFileError(ConfigError):
    """A key file cannot be used or made; the sentence says why and what to do."""


@dataclass(frozen=True, slots=True)
class KeyDirectory:
    """The keys of a server."""

    path: Path

    @property
    def server_secret(self) -> Path:
        """The server's pair."""
        return self.path / "server.key_secret"

    @property
    def clients(self) -> Path:
        """Directory of the public keys that are let in."""
        return self.path / "clients"

    def make(self, *, replace: bool) -> None:
        """Make the directory and the server's pair."""
        try:
            for path in (self.path, self.clients):
                path.mkdir(mode=0o700, exist_ok=True)
                _require_ours(path, os.stat(path), _WRITABLE)
        except OSError as fault:
            raise KeyFileError(f"cannot make {fault.filename}: {fault.strerror}") from None
        public, secret = (key.decode() for key in zmq.curve_keypair())
        _write(self.server_secret, _certificate(public, secret), replace=replace)
        _write(self.path / "server.key", _certificate(public), replace=True)

    def make_client(self, name: str, out: Path, *, replace: bool) -> None:
        """Let a client in: its public key into `clients`, all that it needs into `out`."""
        if not _NAME.fullmatch(name):
            raise KeyFileError(
                f"client name {name!r}: expected 1 to 64 of A-Z a-z 0-9 . _ -, the first no dot or"
                " dash"
            )
        entry = self.clients / f"{name}.key"
        server_key = self._server_keys()["public-key"]
        if entry.exists() and not replace:
            raise KeyFileError(f"{entry} exists: with --replace its old key is let in no more")
        public, secret = (key.decode() for key in zmq.curve_keypair())
        metadata = {"name": name, "server-key": server_key}
        _write(out, _certificate(public, secret, metadata), replace=replace)
        _write(entry, _certificate(public), replace=replace)

    def server_curve(self) -> ServerCurve:
        """What the server's tcp addresses need."""
        secret_key = self._server_keys()["secret-key"].encode()
        allowed = AllowedClients(self.clients)
        allowed.load()
        return ServerCurve(secret_key, allowed)

    def _server_keys(self) -> dict[str, str]:
        try:
            for path in (self.path, self.clients):
                _require_ours(path, os.stat(path), _WRITABLE)
        except OSError as fault:
            raise KeyFileError(
                f"key directory {fault.filename}: {fault.strerror}: make one with"
                f" `lmcache-mp keys server {self.path}`"
            ) from None
        return _read(self.server_secret, "public-key", "secret-key")


class AllowedClients:
    """The public keys in a directory, as of this moment. For one thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seen: dict[Path, tuple[int, ...]] = {}
        self._keys: frozenset[bytes] = frozenset()

    def __call__(self, public_key: bytes) -> bool:
        """Whether the key is there; raises `OSError` if the directory cannot be read."""
        self.load()
        return public_key in self._keys

    def load(self) -> None:
        """Read the files if one has changed; those that cannot be used are logged, and let in
        nobody.
        """
        found = {path: _identity(path) for path in sorted(self._directory.iterdir())}
        if found == self._seen:
            return
        keys: set[bytes] = set()
        for path in found:
            if path.suffix == ".key":
                try:
                    keys.add(_read(path, "public-key")["public-key"].encode())
                except KeyFileError as fault:
                    log.warning("nobody is let in by %s", fault)
        self._seen, self._keys = found, frozenset(keys)
        log.info("clients with a key in %s: %d", self._directory, len(keys))


def client_curve(path: Path) -> ClientCurve:
    """What a client's file holds, as `lmcache-mp keys client` makes it; raises `KeyFileError`."""
    keys = _read(path, "public-key", "secret-key", "server-key")
    return ClientCurve(
        public_key=keys["public-key"].encode(),
        secret_key=keys["secret-key"].encode(),
        server_key=keys["server-key"].encode(),
    )


def curve_for(address: str, key_file: str | Path | None) -> ClientCurve | None:
    """What a client with that file, or without one, needs for that address: ipc takes no keys."""
    if key_file is None or not address.startswith("tcp://"):
        return None
    return client_curve(Path(key_file))


def _read(path: Path, *wanted: str) -> dict[str, str]:
    """The wanted keys of a certificate, and no other."""
    others_may_not = _READABLE if "secret-key" in wanted else _WRITABLE
    try:
        with open(path, "rb") as file:
            _require_ours(path, os.fstat(file.fileno()), others_may_not)
            text = file.read(MAX_FILE_BYTES).decode("utf-8", "replace")
    except OSError as fault:
        raise KeyFileError(f"key file {path}: {fault.strerror}") from None
    found = dict(_FIELD.findall(text))
    for name in wanted:
        if not _Z85.fullmatch(found.get(name, "")):
            hint = " (the server's public key, below `metadata`)" if name == "server-key" else ""
            raise KeyFileError(
                f'key file {path} has no line `{name} = "..."`{hint} with 40 characters of Z85'
            )
    return {name: found[name] for name in wanted}


def _require_ours(path: Path, found: os.stat_result, others_may_not: int) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid not in (os.geteuid(), 0):
        raise KeyFileError(
            f"{path} belongs to uid {found.st_uid}, this is uid {os.geteuid()}:"
            f" chown {os.geteuid()} {path}"
        )
    if mode & others_may_not:
        may = "read" if others_may_not == _READABLE else "write to"
        safe = "0700" if stat.S_ISDIR(found.st_mode) else "0600"
        raise KeyFileError(f"{path} has mode {mode:04o}, others may {may} it: chmod {safe} {path}")


def _identity(path: Path) -> tuple[int, ...]:
    """Something that changes with the file; empty if it is gone by now."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _certificate(public: str, secret: str = "", metadata: dict[str, str] | None = None) -> str:
    lines = [
        "# ZeroMQ CURVE secret certificate: for its owner alone"
        if secret
        else "# ZeroMQ CURVE public certificate",
        "metadata",
        *(f'    {name} = "{value}"' for name, value in (metadata or {}).items()),
        "curve",
        f'    public-key = "{public}"',
        *([f'    secret-key = "{secret}"'] if secret else []),
    ]
    return "".join(f"{line}\n" for line in lines)


def _write(path: Path, text: str, *, replace: bool) -> None:
    """Make a file that is 0600 from the start, and whole or not there."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(text)
            if replace:
                draft.replace(path)
            else:
                path.hardlink_to(draft)
        finally:
            draft.unlink(missing_ok=True)
    except FileExistsError:
        raise KeyFileError(
            f"{path} exists, and may be all that some machine has of this key: replace it with"
            " --replace"
        ) from None
    except OSError as fault:
        raise KeyFileError(f"cannot write {path}: {fault.strerror}") from None
