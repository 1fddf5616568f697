"""Real Redis and S3 servers, each a process of the test's own, for as long as a `with` lasts."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from typing_extensions import override

from tests.l2.certificates import Certificates
from tests.waiting import wait_until
from tests.world import short_directory

MOTO = Path(__file__).with_name("moto_one_at_a_time.py")
BUCKET = "kv-cache"
S3_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "not-a-secret"}


class Server:
    """A process with a log, which may be stopped, killed and started again."""

    def __init__(self, directory: Path, command: Sequence[str]) -> None:
        self.directory = directory
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def start(self) -> None:
        """Start it; whether it answers is seen elsewhere."""
        with open(self.directory / "log", "wb") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self.directory, stdout=log, stderr=subprocess.STDOUT
            )

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    @contextlib.contextmanager
    def stopped(self) -> Generator[None, None, None]:
        """Inside, it hangs."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=10)

    def lives(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"{self._command} ended: {self.log}"
        return True


class RedisServer(Server):
    """A redis-server that keeps nothing on disk, on a socket in its directory, and maybe a port."""

    def __init__(self, directory: Path, *options: str, port: int = 0) -> None:
        binary = shutil.which("redis-server") or shutil.which("valkey-server")
        if binary is None:
            pytest.skip("neither redis-server nor valkey-server is installed (see .ci/run)")
        self.port = port
        socket_path = directory / "socket"
        self.unix_url = f"unix://{socket_path}"
        self.tcp_url = f"redis://127.0.0.1:{port}"
        command = [binary, "--bind", "127.0.0.1", "--unixsocket", str(socket_path), "--save", ""]
        given = [] if "--tls-port" in options else ["--port", str(port)]
        super().__init__(directory, [*command, *given, *options])
        self._password: str | None = None
        if "--requirepass" in options:
            self._password = options[options.index("--requirepass") + 1]

    @contextlib.contextmanager
    def console(self) -> Generator[Any, None, None]:
        """A client of the library, as it comes; its annotations are not complete."""
        path = str(self.directory / "socket")
        with redis.Redis(unix_socket_path=path, password=self._password) as client:
            yield client

    @override
    def start(self) -> None:
        super().start()
        wait_until(self._answers)

    def _answers(self) -> bool:
        self.lives()
        try:
            with self.console() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False


@contextlib.contextmanager
def redis_server(*options: str, port: int = 0) -> Generator[RedisServer, None, None]:
    """A running one."""
    with short_directory() as directory:
        server = RedisServer(directory, *options, port=port)
        try:
            server.start()
            yield server
        finally:
            server.kill()


@contextlib.contextmanager
def redis_with_tls(
    made: Certificates, *options: str
) -> Generator[tuple[RedisServer, str], None, None]:
    """A running one, and the URL of its TLS port; it asks no certificate of its clients."""
    port = free_port()
    files = ("--tls-cert-file", str(made.certificate), "--tls-key-file", str(made.key))
    trust = ("--tls-ca-cert-file", str(made.ca), "--tls-auth-clients", "no")
    with redis_server("--tls-port", str(port), "--port", "0", *files, *trust, *options) as server:
        yield server, f"rediss://127.0.0.1:{port}"


@contextlib.contextmanager
def redis_cluster() -> Generator[list[RedisServer], None, None]:
    """Three primaries with all slots."""
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(
                redis_server(
                    *("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"),
                    *("--cluster-port", str(free_port())),
                    port=free_port(),
                )
            )
            for _ in range(3)
        ]
        cli = shutil.which("redis-cli") or shutil.which("valkey-cli")
        if cli is None:
            pytest.skip("neither redis-cli nor valkey-cli is installed (see .ci/run)")
        addresses = [f"127.0.0.1:{node.port}" for node in nodes]
        subprocess.run(
            [cli, "--cluster", "create", *addresses, "--cluster-yes"],
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=30,
        )
        for node in nodes:
            wait_until(lambda node=node: _is_complete(node))  # type: ignore[misc]
        yield nodes


def _is_complete(node: RedisServer) -> bool:
    with node.console() as client:
        return bool(client.cluster("info")["cluster_state"] == "ok")


class S3Server(Server):
    """moto's server, which keeps its objects in memory."""

    def __init__(self, directory: Path, made: Certificates | None = None, port: int = 0) -> None:
        self._scheme = "http" if made is None else "https"
        flags = [] if made is None else ["-c", str(made.certificate), "-k", str(made.key)]
        command = [sys.executable, str(MOTO), "-H", "127.0.0.1", "-p", str(port), *flags]
        super().__init__(directory, command)
        self.endpoint = ""

    @override
    def start(self) -> None:
        super().start()
        self.endpoint = wait_until(self._listens, timeout_s=60)

    def request(self, path: str, body: bytes, method: str = "POST") -> None:
        """One plain request, for what needs no credentials yet."""
        headers = {"Content-Type": "application/octet-stream"}
        asked = urllib.request.Request(self.endpoint + path, body, headers, method=method)
        with urllib.request.urlopen(asked, timeout=10) as answer:
            answer.read()

    def make_bucket(self) -> None:
        self.request(f"/{BUCKET}", b"", "PUT")

    def check_credentials(self, *, really: bool) -> None:
        self.request("/moto-api/reset-auth", b"0" if really else b"inf")

    def _listens(self) -> str:
        self.lives()
        found = re.search(rf"Running on ({self._scheme}://127\.0\.0\.1:\d+)", self.log)
        return found[1] if found else ""


@contextlib.contextmanager
def s3_server(made: Certificates | None = None, port: int = 0) -> Generator[S3Server, None, None]:
    """A running one; without TLS it has a bucket."""
    with short_directory() as directory:
        server = S3Server(directory, made, port)
        try:
            server.start()
            if made is None:
                server.make_bucket()
            yield server
        finally:
            server.kill()


def free_port() -> int:
    """A port that was free a moment ago: servers that cannot pick one are told this one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def their_redis() -> str | None:
    """The URL of a server that whoever runs the tests would have them use."""
    return os.environ.get("LMCACHE_MP_TEST_REDIS_URL") or None


def their_s3() -> str | None:
    """The endpoint of a store that whoever runs the tests would have them use; it has `BUCKET`."""
    return os.environ.get("LMCACHE_MP_TEST_S3_ENDPOINT") or None
