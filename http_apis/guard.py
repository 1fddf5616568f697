"""The middleware before all routes: it lets in whom the `Door` lets in, and bounds bodies.

It stands before the router, and so before what anybody's module serves, however that is mounted.
Only what a route demands besides (`Demand`) needs the router's knowledge: for a request that may
change something, the routes are gone through in the router's own order.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from logging import WARNING
from typing import Any

from starlette.requests import HTTPConnection
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bus.limited_log import LimitedLog
from http_apis.demand import SAFE_METHODS, Demand, demand_of
from http_apis.door import Door, Refused
from http_apis.errors import failure
from lmcache_mp.logging import init_logger

log = init_logger(__name__)

_WEBSOCKET = "WEBSOCKET"  # which stands where a request has its method
_SAFE = SAFE_METHODS | {_WEBSOCKET}
_PLAIN = Demand()
CLOSE = {"Connection": "close"}  # the rest of the body is not worth reading


class Guard:
    """Pure ASGI. Refusals are answered here, in the one shape of all errors."""

    def __init__(self, app: ASGIApp, door: Door, routes: Sequence[Any]) -> None:
        self._app = app
        self._door = door
        self._routes = routes
        self._asked_by = {
            method
            for route in routes
            if demand_of(getattr(route, "endpoint", None))
            for method in getattr(route, "methods", None) or (_WEBSOCKET,)
        }
        self._log = LimitedLog(log)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request pass, or answer it."""
        if scope["type"] in ("http", "websocket"):
            try:
                receive = self._admit(HTTPConnection(scope), receive)
            except Refused as refusal:
                self._say(scope, refusal)
                await _refuse(refusal, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _admit(self, connection: HTTPConnection, receive: Receive) -> Receive:
        self._door.check_host(connection.headers)
        method = connection.scope.get("method", _WEBSOCKET)
        demand = self._demand(connection.scope, method)
        is_change = demand.is_change(method in _SAFE)
        if is_change:
            self._door.admit_change(connection, never_open=demand.never_open)
        elif method == _WEBSOCKET:  # no browser asks before it opens one across sites
            self._door.check_site(connection)
        length = connection.headers.get("content-length", "0")
        is_chunked = "transfer-encoding" in connection.headers
        if length == "0" and not is_chunked:
            return receive
        if is_change:
            _check_media_type(connection, demand)
        if not (length.isascii() and length.isdigit()):
            raise Refused(400, f"Content-Length {length[:100]!r} is no number", CLOSE)
        if int(length) > demand.max_body_bytes:
            raise _too_large(demand, length)
        return _bounded(receive, demand) if is_chunked else receive

    def _demand(self, scope: Scope, method: str) -> Demand:
        if method in _SAFE and method not in self._asked_by:
            return _PLAIN
        for route in self._routes:
            match, _ = route.matches(scope)
            if match is Match.FULL:
                return demand_of(getattr(route, "endpoint", None)) or _PLAIN
        return _PLAIN

    def _say(self, scope: Scope, refusal: Refused) -> None:
        now_s = time.monotonic()
        client = (scope.get("client") or ("unknown",))[0]
        method, path = scope.get("method", _WEBSOCKET), scope["path"][:100]
        self._log.look(now_s)
        self._log.say(
            now_s,
            WARNING,
            "http refused status=%d client=%s request=%r: %s",
            refusal.status_code,
            client,
            f"{method} {path}",
            refusal.detail,
        )


def _check_media_type(connection: HTTPConnection, demand: Demand) -> None:
    given = connection.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() not in demand.media_types:
        raise Refused(
            415,
            f"the body is {given[:100] or 'of no type'}: send it as"
            f" {' or '.join(demand.media_types)}, and say so in the Content-Type header",
            CLOSE,
        )


def _too_large(demand: Demand, length: int | str) -> Refused:
    return Refused(
        413, f"a body of {length} bytes: at most {demand.max_body_bytes} are taken here", CLOSE
    )


def _bounded(receive: Receive, demand: Demand) -> Receive:
    """For a body that does not say its length before it comes."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > demand.max_body_bytes:
            raise _too_large(demand, f"at least {received}")
        return message

    return bounded


async def _refuse(refusal: Refused, scope: Scope, receive: Receive, send: Send) -> None:
    answer = failure(refusal.status_code, str(refusal.detail), refusal.headers)
    if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
        await answer(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 1008})
