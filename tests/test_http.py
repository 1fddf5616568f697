"""The http process, beside an engine that is not there yet, runs, hangs, or was killed."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

import http_apis
from bus.aio import AsyncClient
from http_apis.engine import Engine
from http_apis.status_api import ServerStatus
from lmcache_mp import messages
from lmcache_mp.process import child_environment
from tests.waiting import wait_until
from tests.world import EngineProcess, short_directory

WAIT_S = 10.0
AWAY = {"error": "engine not initialized"}


class Node:
    """An engine and an http process of one run directory; a test starts and ends them."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "http.log"
        self._api_dir = directory / "apis"
        self._api_dir.mkdir()
        self.engine = EngineProcess({"l1_size": "8MiB", "http_api_dir": (str(self._api_dir),)})
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._started: list[subprocess.Popen[bytes]] = []
        self._client = self._new_client()

    @property
    def engine_pid(self) -> int:
        assert self.engine.process is not None
        return self.engine.process.pid

    @property
    def http_pid(self) -> int:
        return self._started[-1].pid

    def start_http(self, *wrapper: str) -> subprocess.Popen[bytes]:
        """Start it; `wrapper` is a command that runs the one after it."""
        run_dir, descriptor = str(self.engine.run_dir.path), self._listener.fileno()
        command = [sys.executable, "-m", "http_apis", "--run-dir", run_dir]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*wrapper, *command, "--fd", str(descriptor)],
                pass_fds=(descriptor,),
                stderr=log,
                env=child_environment(),
            )
        self._started.append(process)
        return process

    def start_engine(self) -> None:
        """Start it, and wait until the http process has found it."""
        self.engine.start()
        wait_until(lambda: self.get("/healthcheck").status_code == 200)

    def serve(self, name: str, source: str) -> None:
        """Put an API module where the next start finds it."""
        (self._api_dir / f"{name}.py").write_text(textwrap.dedent(source))

    def get(self, path: str) -> httpx.Response:
        return self._client.get(path)

    def post(self, path: str) -> httpx.Response:
        return self._client.post(path)

    def status(self) -> ServerStatus:
        return msgspec.json.decode(self.get("/status").content, type=ServerStatus)

    def close_idle(self) -> None:
        """Let the next request have a connection of its own."""
        self._client.close()
        self._client = self._new_client()

    def connection(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=WAIT_S)

    def _new_client(self) -> httpx.Client:
        url = "http://{}:{}".format(*self.address)
        return httpx.Client(base_url=url, timeout=WAIT_S, trust_env=False)

    def close(self) -> None:
        self._client.close()
        self._listener.close()
        for process in self._started:
            process.kill()
            process.wait()
        self.engine.finish()


@pytest.fixture
def node() -> Iterator[Node]:
    with short_directory() as directory, contextlib.closing(Node(directory)) as node:
        yield node


def test_without_an_engine_only_liveness_is_given(node: Node) -> None:
    node.start_http()
    alive = node.get("/")
    assert alive.status_code == 200
    assert alive.json()["status"] == "ok"
    assert alive.json()["service"] == "lmcache-mp"
    for answer in (node.get("/status"), node.post("/clear-cache")):
        assert (answer.status_code, answer.json()) == (503, AWAY)
    health = node.get("/healthcheck")
    assert health.status_code == 503
    assert health.json() == {"status": "unhealthy", "reason": "engine not initialized"}


def test_with_an_engine_every_endpoint_answers(node: Node) -> None:
    http = node.start_http()
    node.start_engine()
    assert node.get("/healthcheck").json() == {"status": "healthy"}
    assert node.post("/clear-cache").json() == {"status": "ok", "cleared_chunks": 0}
    report = node.status()
    assert report.processes["engine"].pid == node.engine_pid
    assert report.processes["http"].pid == http.pid
    assert report.http_apis.mounted == ["cache_api", "healthcheck_api", "root_api", "status_api"]
    assert report.http_apis.failed == {}


def test_clear_cache_says_how_many_chunks_it_forgot_and_leaves_none(node: Node) -> None:
    node.start_http()
    node.start_engine()
    with node.engine.client() as cache, cache.store(cache.chunk_keys(range(12))) as batch:
        assert len(list(batch.slots())) == 3
    assert node.status().l1.ready_chunks == 3
    assert node.post("/clear-cache").json() == {"status": "ok", "cleared_chunks": 3}
    assert node.status().l1.ready_chunks == 0


def test_the_schema_of_the_status_report_is_in_the_api_document(node: Node) -> None:
    node.start_http()
    paths = node.get("/openapi.json").json()["paths"]
    schema = paths["/status"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema["properties"].keys() == set(ServerStatus.__struct_fields__)
    assert schema["properties"]["l1"]["properties"]["ready_chunks"] == {"type": "integer"}
    assert {"503", "504"} <= paths["/clear-cache"]["post"]["responses"].keys()


def test_a_killed_engine_is_away_until_the_next_one_is_there(node: Node) -> None:
    node.start_http()
    node.start_engine()
    first = node.status()
    node.engine.kill()
    for answer in (node.get("/status"), node.post("/clear-cache")):  # at once, not after a while
        assert (answer.status_code, answer.json()) == (503, AWAY)
    assert node.get("/").status_code == 200
    node.start_engine()
    second = node.status()
    assert second.processes["engine"].pid == node.engine_pid
    assert second.epoch != first.epoch


def test_a_hanging_engine_is_an_answer_within_the_deadline(node: Node) -> None:
    node.start_http()
    node.start_engine()
    node.engine.signal(signal.SIGSTOP)
    health = node.get("/healthcheck")
    assert health.status_code == 503
    assert re.fullmatch(r"no answer to heartbeat from ipc:.* in 0\.8 s", health.json()["reason"])
    cleared = node.post("/clear-cache")
    assert cleared.status_code == 504
    assert re.fullmatch(r"no answer to clear from ipc:.* in 5 s", cleared.json()["error"])
    node.engine.signal(signal.SIGCONT)
    wait_until(lambda: node.get("/healthcheck").status_code == 200)
    assert node.status().processes["engine"].pid == node.engine_pid


def test_a_third_party_module_reaches_the_engine_and_its_server(node: Node) -> None:
    node.serve(
        "hello_api",
        """
        from fastapi import APIRouter, Request
        from lmcache_mp import messages
        from lmcache_mp.logging import init_logger

        log = init_logger(__name__)
        router = APIRouter()

        @router.get("/hello")
        async def hello(request: Request):
            engine = request.app.state.engine
            server = request.app.state.zmq_server
            if engine is None:
                return None
            log.info("hello was asked for")
            report = await engine.call(messages.Status())
            raw = await server.call(messages.Status())
            return {
                "endpoint": server.endpoint,
                "pid": server.pid,
                "epochs": [server.epoch, report.epoch, raw.epoch],
            }
        """,
    )
    node.start_http()
    assert node.get("/hello").json() is None
    node.start_engine()
    hello = node.get("/hello").json()
    assert hello["endpoint"] == node.engine.address
    assert hello["pid"] == node.engine_pid
    assert hello["epochs"] == [node.status().epoch] * 3
    assert "hello was asked for" in node.log.read_text()


def test_the_example_of_the_module_contract_is_true(node: Node) -> None:
    text = (http_apis.__doc__ or "").partition("    from fastapi")
    node.serve("chunks_api", "".join(text[1:]).partition("\n`ReadyEngine`")[0])
    node.start_http()
    answer = node.get("/chunks")
    assert (answer.status_code, answer.json()) == (503, AWAY)
    node.start_engine()
    assert node.get("/chunks").json() == {"chunks": 0}


def test_a_broken_module_is_named_in_the_status_and_in_the_log(node: Node) -> None:
    node.serve("broken_api", "import no_such_module")
    node.start_http()
    node.start_engine()
    reason = "ModuleNotFoundError: No module named 'no_such_module'"
    assert node.status().http_apis.failed == {"broken_api": reason}
    assert f"name=broken_api: {reason}" in node.log.read_text()


def test_a_failing_route_is_logged_with_its_traceback(node: Node) -> None:
    node.serve(
        "failing_api",
        """
        from fastapi import APIRouter

        router = APIRouter()

        @router.get("/failing")
        async def failing():
            raise ValueError("a private detail")
        """,
    )
    node.start_http()
    answer = node.get("/failing")
    assert answer.status_code == 500
    assert "private" not in answer.text
    wait_until(lambda: "ValueError: a private detail" in node.log.read_text())


def test_a_connection_waits_in_the_backlog_while_http_starts_and_restarts(node: Node) -> None:
    for _ in range(2):
        with node.connection() as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            http = node.start_http()
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 OK")
        http.send_signal(signal.SIGTERM)
        assert http.wait(WAIT_S) == 0


def test_sigterm_during_the_start_ends_it_with_0(node: Node) -> None:
    node.serve("slow_api", "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)")
    assert node.start_http().wait(WAIT_S) == 0


@pytest.mark.parametrize("sent", [b"", b"GET / HTT"])
def test_sigterm_ends_it_with_0_while_a_connection_is_open(node: Node, sent: bytes) -> None:
    http = node.start_http()
    with node.connection() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(4096)
        connection.sendall(sent)
        http.send_signal(signal.SIGTERM)
        assert http.wait(WAIT_S) == 0


def test_sigterm_ends_it_with_0_while_a_stream_is_open(node: Node) -> None:
    node.serve(
        "stream_api",
        """
        import asyncio
        from fastapi import APIRouter
        from fastapi.responses import StreamingResponse

        router = APIRouter()

        async def for_ever():
            yield b"first"
            await asyncio.Event().wait()

        @router.get("/stream")
        async def stream():
            return StreamingResponse(for_ever())
        """,
    )
    http = node.start_http()
    with node.connection() as connection:
        connection.sendall(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while b"first" not in received:
            received += connection.recv(4096)
        http.send_signal(signal.SIGTERM)
        assert http.wait(WAIT_S) == 0


def test_it_says_which_descriptor_is_no_listening_socket(node: Node) -> None:
    with socket.socket() as unconnected:
        for descriptor in (unconnected.fileno(), 999):
            http = subprocess.run(
                [sys.executable, "-m", "http_apis", "--run-dir", "/", "--fd", str(descriptor)],
                pass_fds=[unconnected.fileno()],
                capture_output=True,
                check=False,
                timeout=WAIT_S,
            )
            assert http.returncode == 2
            assert str(descriptor) in http.stderr.decode()


def test_it_says_that_there_are_no_settings(node: Node) -> None:
    node.engine.run_dir.config_file.unlink()
    assert node.start_http().wait(WAIT_S) == 2
    assert str(node.engine.run_dir.config_file) in node.log.read_text()


def test_a_thousand_calls_that_met_a_paused_engine_are_answered_to_the_last(
    start_engine: Callable[..., EngineProcess],
) -> None:
    engine = start_engine()

    async def pause_and_go_on() -> list[messages.StatusReport]:
        client = await AsyncClient.connect(engine.address)
        engine.signal(signal.SIGSTOP)
        handle = Engine(client)
        calls = asyncio.gather(*(handle.call(messages.Status(), WAIT_S) for _ in range(1000)))
        await asyncio.sleep(0)  # each of them has come as far as it can
        engine.signal(signal.SIGCONT)
        try:
            return await calls
        finally:
            await client.close()

    assert len(asyncio.run(pause_and_go_on())) == 1000
