"""Who gets in over HTTP: tokens, the names the server goes by, pages of other sites, bodies."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from http_apis.door import is_loopback
from tests.asker import EVERYWHERE, GOOD, LOOPBACK, TOKEN, Asker


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good token file."""
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(f"{TOKEN}\n")
    return path


MakeAsker = Callable[..., Asker]


@pytest.fixture
def asker(tmp_path: Path) -> MakeAsker:
    def asker(listens_on: str = LOOPBACK, token: Path | None = None) -> Asker:
        return Asker(tmp_path, listens_on, token)

    return asker


CHANGES = [
    ("POST", "/clear-cache", 503),  # let in, and there is no engine
    ("POST", "/conf", 200),
    ("PUT", "/conf", 200),
    ("PATCH", "/conf", 200),
    ("DELETE", "/conf", 200),
    ("GET", "/dump", 200),
    ("GET", "/loglevel?level=debug", 200),
    ("POST", "/shadow/query", 200),
    ("POST", "/no/such/path", 404),
    ("TRACE", "/conf", 405),
]
READS = [
    ("GET", "/", 200),
    ("GET", "/conf", 200),
    ("GET", "/loglevel", 200),
    ("GET", "/status", 503),
    ("POST", "/query", 200),
    ("HEAD", "/conf", 405),
]


@pytest.mark.parametrize(("method", "path", "status"), CHANGES)
def test_with_a_token_file_what_changes_something_takes_the_token(
    asker: MakeAsker, file: Path, method: str, path: str, status: int
) -> None:
    for listens_on in (LOOPBACK, EVERYWHERE):
        server = asker(listens_on, file)
        for given in (
            {},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": f"Bearer {TOKEN[:-1]}"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": TOKEN},
            {"Authorization": "Bearer"},
        ):
            answer = server.ask(method, path, headers=given)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert "--http-token-file" in answer.json()["error"]
            assert TOKEN not in answer.text
        twice = [("Authorization", f"Bearer {TOKEN}")] * 2
        assert server.ask(method, path, headers=twice).status_code == 401
        assert server.ask(method, path, headers=GOOD).status_code == status
        other_case = {"Authorization": f"bearer  {TOKEN}"}
        assert server.ask(method, path, headers=other_case).status_code == status


@pytest.mark.parametrize(("method", "path", "status"), CHANGES)
def test_without_one_it_is_open_on_loopback_and_closed_beyond(
    asker: MakeAsker, method: str, path: str, status: int
) -> None:
    assert asker(LOOPBACK).ask(method, path).status_code == status
    answer = asker(EVERYWHERE).ask(method, path, headers=GOOD)
    assert answer.status_code == 403
    assert "beyond the loopback interface: start the server with --http-token-file" in answer.text


@pytest.mark.parametrize(("method", "path", "status"), READS)
def test_what_only_reads_is_open_everywhere(
    asker: MakeAsker, file: Path, method: str, path: str, status: int
) -> None:
    for server in (asker(), asker(EVERYWHERE), asker(EVERYWHERE, file)):
        assert server.ask(method, path).status_code == status


def test_what_is_never_open_needs_a_token_on_loopback_too(asker: MakeAsker, file: Path) -> None:
    script = {"script": b"x" * 9}
    for server in (asker(), asker(EVERYWHERE)):
        answer = server.ask("POST", "/run_script", files=script, headers=GOOD)
        assert answer.status_code == 403
        assert "never open" in answer.json()["error"]
    server = asker(token=file)
    assert server.ask("POST", "/run_script", files=script).status_code == 401
    answer = server.ask("POST", "/run_script", files=script, headers=GOOD)
    assert (answer.status_code, answer.json()) == (200, {"received": 9})


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8080",
        "[::1]",
        "[fe80::1]:8080",
        "localhost:8080",
        "LocalHost.",
        "kv.EXAMPLE:80",
        f"{os.uname().nodename}:8080",
    ],
)
def test_a_host_that_is_this_server_is_served(asker: MakeAsker, host: str) -> None:
    assert asker().ask("GET", "/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 421),
        ("localhost.evil.example:8080", 421),
        ("127.0.0.1.evil.example", 421),
        ("notlocalhost", 421),
        ("127.1", 421),
        ("", 400),
        ("localhost:80:80", 400),
        ("evil@localhost", 400),
        ("localhost/evil", 400),
        ("[evil.example]", 400),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_host_is_refused_whatever_is_asked(
    asker: MakeAsker, file: Path, method: str, host: str, status: int
) -> None:
    answer = asker(token=file).ask(method, "/conf", headers={"Host": host, **GOOD})
    assert answer.status_code == status
    if status == 421:
        assert "--http-allowed-host" in answer.json()["error"]


@pytest.mark.parametrize("hosts", [[], ["localhost", "localhost"]])
def test_there_is_one_host_header(asker: MakeAsker, hosts: list[str]) -> None:
    headers = [(b"host", host.encode()) for host in hosts]
    scope = {"type": "http", "method": "GET", "scheme": "http", "headers": headers}
    assert asker().raw(scope)["status"] == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://[::1]:1"},
        {"Origin": "http://[::1]"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_site_changes_nothing(
    asker: MakeAsker, file: Path, headers: dict[str, str]
) -> None:
    for server in (asker(), asker(token=file)):
        for method, path, _ in CHANGES:
            answer = server.ask(method, path, headers={**headers, **GOOD})
            assert answer.status_code == 403
            assert "page" in answer.json()["error"]
        for method, path, status in READS:
            assert server.ask(method, path, headers=headers).status_code == status


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://[::1]:1", "Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}],
)
def test_a_page_of_this_server_may(asker: MakeAsker, headers: dict[str, str]) -> None:
    assert asker().ask("POST", "/conf", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "media_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""],
)
def test_what_a_browser_sends_unasked_is_no_body_of_a_change(
    asker: MakeAsker, media_type: str
) -> None:
    for request in ({"content": b"{}"}, {"content": chunks(2)}):
        answer = asker().ask("POST", "/typed", headers={"Content-Type": media_type}, **request)
        assert answer.status_code == 415
        assert "application/json" in answer.json()["error"]
        assert answer.headers["connection"] == "close"


def test_a_route_takes_the_types_it_names_and_no_other(asker: MakeAsker, file: Path) -> None:
    answer = asker(token=file).ask("POST", "/run_script", json={}, headers=GOOD)
    assert answer.status_code == 415
    assert "multipart/form-data" in answer.json()["error"]
    assert (
        asker().ask("POST", "/query", content=b"x", headers={"Content-Type": "text/x"}).is_success
    )


def test_the_calls_of_the_documents_work(asker: MakeAsker, file: Path) -> None:
    """curl -X POST, with -d '', with -d and a type, with -F; see also `CHANGES` and `READS`."""
    server = asker(token=file)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert server.ask("POST", "/clear-cache", headers=GOOD).status_code == 503
    assert server.ask("POST", "/clear-cache", headers=GOOD | form).status_code == 503
    for media_type in ("application/json", "Application/JSON; charset=utf-8"):
        headers = GOOD | {"Content-Type": media_type}
        answer = server.ask("POST", "/typed", content=b'{"a": 512}', headers=headers)
        assert answer.json() == {"a": 512}
    files = {"script": ("scratch.py", b"print(1)")}
    assert server.ask("POST", "/run_script", files=files, headers=GOOD).json() == {"received": 8}


async def chunks(size: int, start: bytes = b"") -> AsyncIterator[bytes]:
    body = start.ljust(size)
    for at in range(0, size, 65536):
        yield body[at : at + 65536]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_is_bounded_whether_it_says_its_length_or_not(
    asker: MakeAsker, file: Path, chunked: bool
) -> None:
    def post(
        path: str, size: int, media_type: str = "application/json", start: bytes = b""
    ) -> httpx.Response:
        content = chunks(size, start) if chunked else start.ljust(size)
        headers = GOOD | {"Content-Type": media_type}
        return asker(token=file).ask("POST", path, content=content, headers=headers)

    assert post("/conf", 1 << 20).json() == {"received": 1 << 20}
    for path in ("/conf", "/typed", "/query"):
        answer = post(path, (1 << 20) + 1)
        assert (answer.status_code, answer.headers["connection"]) == (413, "close")
        assert "1048576" in answer.json()["error"]
    part = b'--x\r\nContent-Disposition: form-data; name="script"; filename="s"\r\n\r\n'
    answer = post("/run_script", (1 << 21) + 1, "multipart/form-data; boundary=x", part)
    assert "2097152" in answer.json()["error"]


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"host": "localhost:80"}, "websocket.accept"),
        ({"host": "localhost:80", "origin": "http://localhost:80"}, "websocket.accept"),
        ({"host": "localhost:80", "origin": "http://evil.example"}, "websocket.close"),
        ({"host": "localhost:80", "origin": "null"}, "websocket.close"),
        ({"host": "evil.example", "origin": "http://evil.example"}, "websocket.close"),
        ({}, "websocket.close"),
    ],
)
def test_a_websocket_is_opened_by_pages_of_this_server_only(
    asker: MakeAsker, headers: dict[str, str], said: str
) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "websocket", "path": "/ws", "scheme": "ws", "headers": raw, "subprotocols": []}
    assert asker().raw(scope)["type"] == said


def test_a_refusal_is_logged_a_few_times_and_then_counted(
    asker: MakeAsker, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = asker(token=file)
    for _ in range(50):
        server.ask("POST", "/conf?key=private", headers={"Authorization": "Bearer a-wrong-secret"})
    lines = [line for line in caplog.messages if "http refused" in line]
    assert 1 < len(lines) <= 10
    assert "status=401" in lines[0]
    assert not [line for line in lines if "private" in line or "a-wrong-secret" in line]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("fe80::1%eth0", False),
    ],
)
def test_what_only_this_host_can_reach(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected
