"""Whatever goes wrong, the answer has a fitting status and the body `{"error": sentence}`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI, HTTPException

import bus
from http_apis import errors
from http_apis.engine import EngineAway
from lmcache_mp import errors as cache


def vocabulary(kind: type[bus.BusError] = bus.BusError) -> Iterator[type[bus.BusError]]:
    for error in kind.__subclasses__():
        if error.__module__ in ("bus.errors", "lmcache_mp.errors"):  # what can cross the bus
            yield error
        yield from vocabulary(error)


def ask(error: Exception | None = None, method: str = "GET", path: str = "/x") -> httpx.Response:
    """What an application answers whose one route, GET /x?n=, raises `error`."""
    app = FastAPI()
    errors.install(app)

    @app.get("/x")
    async def x(n: int = 0) -> int:
        if error is not None:
            raise error
        return n

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path)

    return asyncio.run(ask())


def test_every_error_of_the_bus_and_of_the_cache_has_a_status_of_its_own() -> None:
    assert set(vocabulary()) <= errors.STATUS.keys()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (EngineAway(), 503),
        (bus.Unavailable("its queue is full"), 503),
        (bus.DeadlineExceeded("no answer in 5 s"), 504),
        (cache.Draining("the server is stopping"), 503),
        (cache.BadKeys("33 bytes are no whole number of keys"), 400),
        (cache.NotRegistered("no namespace 7"), 404),
        (bus.CallError("a code of tomorrow"), 502),
    ],
)
def test_an_error_of_the_engine_is_answered_with_its_sentence(
    error: bus.BusError, status: int
) -> None:
    answer = ask(error)
    assert (answer.status_code, answer.json()) == (status, {"error": str(error)})


def test_an_unknown_path_is_named() -> None:
    answer = ask(path="/nope")
    assert (answer.status_code, answer.json()) == (404, {"error": "GET /nope: not found"})


def test_a_wrong_method_is_told_the_right_one() -> None:
    answer = ask(method="POST")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    assert answer.json() == {"error": "POST /x: method not allowed, it takes GET"}


def test_a_bad_parameter_is_a_400_that_names_it() -> None:
    answer = ask(path="/x?n=many")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("query.n: Input should be a valid integer")


def test_what_a_route_says_itself_is_passed_on() -> None:
    answer = ask(HTTPException(418, "a teapot", headers={"X-Kind": "tea"}))
    assert (answer.status_code, answer.json()) == (418, {"error": "a teapot"})
    assert answer.headers["x-kind"] == "tea"


def test_a_status_of_ones_own_and_one_without_a_body_are_passed_on() -> None:
    assert ask(HTTPException(499, "it left")).json() == {"error": "it left"}
    assert ask(HTTPException(304)).content == b""


def test_a_bug_is_a_500_without_a_traceback_or_a_secret() -> None:
    answer = ask(ValueError("password=hunter2"))
    assert answer.status_code == 500
    assert answer.json() == {
        "error": "GET /x failed with ValueError: the log of the http process has the traceback"
    }
