"""However many connections others hold, and whatever they do with them, HTTP answers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import psutil
import pytest

from tests.test_http import WAIT_S, Node
from tests.waiting import wait_until
from tests.world import short_directory

DESCRIPTORS = 512
CONNECTIONS = 200
BOUND = DESCRIPTORS // 4

MODULE = """
    from fastapi import APIRouter, Request, Response

    router = APIRouter()

    @router.post("/read")
    async def read(request: Request) -> int:
        return len(await request.body())

    @router.get("/large")
    async def large() -> Response:
        return Response(b"x" * (4 << 20))
"""
HEAD = b"Host: localhost\r\nContent-Type: application/json\r\n"
HELD = {
    "nothing sent": b"",
    "half a head": b"GET / HTTP/1.1\r\nHost: loc",
    "half a body": b"POST /read HTTP/1.1\r\n" + HEAD + b"Content-Length: 10\r\n\r\n{",
    "half a chunk": b"POST /read HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\n{",
    "an answer not read": b"GET /large HTTP/1.1\r\n" + HEAD + b"\r\n",
    "an answer read, and half of the next": b"GET / HTTP/1.1\r\n" + HEAD + b"\r\nGET / HT",
}


@pytest.fixture
def node() -> Iterator[Node]:
    """An http process that may have few descriptors."""
    with short_directory() as directory, contextlib.closing(Node(directory)) as node:
        node.serve("module_api", MODULE)
        node.start_http("prlimit", f"--nofile={DESCRIPTORS}")
        assert node.get("/").status_code == 200
        yield node


@pytest.mark.parametrize("sent", HELD.values(), ids=HELD.keys())
def test_connections_that_are_only_held_keep_nobody_out(node: Node, sent: bytes) -> None:
    process = psutil.Process(node.http_pid)
    with contextlib.ExitStack() as held:
        for _ in range(CONNECTIONS):
            connection = held.enter_context(node.connection())
            with contextlib.suppress(ConnectionError):  # its place was wanted already
                connection.sendall(sent)
        for _ in range(3):
            node.close_idle()
            assert node.get("/").status_code == 200
        wait_until(lambda: len(process.net_connections("tcp")) <= BOUND + 1)  # and the listener
    assert process.is_running()
    assert process.num_fds() < DESCRIPTORS


def test_who_is_being_answered_outlasts_those_who_wait(node: Node) -> None:
    with contextlib.ExitStack() as held:
        busy = held.enter_context(node.connection())
        busy.sendall(HELD["an answer not read"])
        start = busy.recv(1024)  # the answer has begun
        for _ in range(CONNECTIONS):
            held.enter_context(node.connection())
        assert node.get("/").status_code == 200
        received = len(start.partition(b"\r\n\r\n")[2])
        while received < 4 << 20:
            piece = busy.recv(1 << 20)
            assert piece, f"cut off after {received} bytes"
            received += len(piece)


def test_within_the_bound_a_slow_request_is_waited_for(node: Node) -> None:
    with contextlib.ExitStack() as held:
        slow = held.enter_context(node.connection())
        slow.sendall(HELD["half a body"])
        for _ in range(BOUND // 2):
            held.enter_context(node.connection())
        assert node.get("/").status_code == 200
        slow.sendall(b'"a": 100}')
        assert slow.recv(1024).startswith(b"HTTP/1.1 200 OK")


def test_a_head_without_an_end_costs_its_connection(node: Node) -> None:
    with socket.create_connection(node.address, timeout=WAIT_S) as endless:
        endless.sendall(b"GET / HTTP/1.1\r\n")
        answer = b""
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                endless.sendall(b"X: " + b"a" * 8192 + b"\r\n")
            answer = endless.recv(4096)
    assert not answer or answer.startswith(b"HTTP/1.1 4")
    assert node.get("/").status_code == 200
