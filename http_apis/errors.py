"""From exceptions to answers: one table, one shape, `{"error": sentence}`."""

from __future__ import annotations

from collections.abc import Mapping
from http.client import responses as phrases
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

import bus
from http_apis.structs import Json
from lmcache_mp import errors as cache

STATUS: dict[type[bus.BusError], int] = {
    # nobody, or nobody in time
    bus.Unavailable: 503,
    bus.DeadlineExceeded: 504,
    bus.StaleEpoch: 503,
    cache.Draining: 503,
    # the request
    bus.BadMessage: 400,
    bus.MessageTooLarge: 413,
    cache.BadKeys: 400,
    cache.BadShard: 400,
    cache.ChunkTooLarge: 400,
    cache.LeaseRefused: 403,
    cache.NotAllowed: 403,
    cache.NotRegistered: 404,
    cache.LeaseNotFound: 404,
    cache.NoSuchAdapter: 404,
    cache.BadLease: 409,
    cache.CannotAttach: 409,
    cache.NamespaceConflict: 409,
    cache.LimitReached: 429,
    # the server
    bus.HandlerFailed: 500,
    bus.WrongThread: 500,
    bus.UnknownMessage: 501,
    bus.BadAnswer: 502,
    bus.WrongVersion: 502,
    bus.CallError: 502,  # a code that this process does not know
    bus.BusError: 500,
}
"""The status of each error; a class that is not listed has its nearest base's."""


class Failure(msgspec.Struct, frozen=True):
    """Body of every answer that is not a success."""

    error: str


NEEDS_ENGINE: dict[int | str, dict[str, Any]] = {
    503: {"model": Json[Failure], "description": "There is no engine, or it is stopping"},
    504: {"model": Json[Failure], "description": "The engine did not answer in time"},
}
"""What a route that calls the engine may answer besides: `responses=` of its decorator."""


def status_of(error: bus.BusError) -> int:
    """The status of an error of the bus or of the cache."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def install(app: FastAPI) -> None:
    """Make `app` answer every exception in the one shape."""
    app.add_exception_handler(bus.BusError, _of_bus)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(Exception, _of_bug)


def failure(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The one shape of what is not a success."""
    return JSONResponse({"error": sentence}, status_code=status, headers=headers)


async def _of_bus(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, bus.BusError)
    return failure(status_of(error), str(error))


async def _of_http(request: Request, error: Exception) -> Response:
    """404 and 405 of the router, and what a route raised as `fastapi.HTTPException`."""
    assert isinstance(error, HTTPException)
    if error.status_code in (204, 304):  # they have no body
        return Response(status_code=error.status_code, headers=error.headers)
    sentence = str(error.detail)
    if sentence == phrases.get(error.status_code):  # nobody said more than the number
        sentence = f"{request.method} {request.url.path}: {sentence.lower()}"
        if allowed := Headers(error.headers).get("allow"):
            sentence += f", it takes {allowed}"
    return failure(error.status_code, sentence, error.headers)


async def _of_validation(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = (
        f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
        for fault in error.errors()
    )
    return failure(400, "; ".join(faults))


async def _of_bug(request: Request, error: Exception) -> JSONResponse:
    """The answer to an exception that nobody meant; uvicorn logs it with its traceback."""
    return failure(
        500,
        f"{request.method} {request.url.path} failed with {type(error).__name__}:"
        " the log of the http process has the traceback",
    )
