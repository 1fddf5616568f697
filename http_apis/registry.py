"""Mounts what `discovery` found, and keeps account of what it could not mount."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import fastapi.routing
import msgspec
from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute

from http_apis.discovery import HOME, Found, discover
from lmcache_mp.logging import init_logger

log = init_logger(__name__)

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]


class RegistryReport(msgspec.Struct, frozen=True, kw_only=True):
    """Which API modules are served, and why others are not; a part of GET /status."""

    mounted: list[str]
    failed: dict[str, str]


class CannotMount(Exception):
    """The module could be imported and is no API; the sentence says what it lacks."""


class HTTPAPIRegistry:
    """Mounts every API module on an application; what fails is named and costs nothing else.

    `app.state.http_apis` is its report.
    """

    def __init__(
        self, app: FastAPI, directories: Iterable[Path] = (), packages: Iterable[str] = (HOME,)
    ) -> None:
        self._app = app
        self._found = discover(packages, directories)
        self._owners = dict.fromkeys(_claims(app.routes), "the application itself")
        self.report = RegistryReport(mounted=[], failed={})
        app.state.http_apis = self.report

    def register_all_apis(self) -> None:
        """Import and mount them all, in order: of two that claim one route the first has it."""
        for found in self._found:
            try:
                self._mount(found)
            except KeyboardInterrupt:  # the process is told to stop
                raise
            except BaseException as fault:  # a module may raise anything, SystemExit too
                self._fail(found.name, fault)
            else:
                self.report.mounted.append(found.name)
        log.info("http apis mounted=%s", ",".join(self.report.mounted))

    def _mount(self, found: Found) -> None:
        router = getattr(found.load(), "router", None)
        if router is None:
            raise CannotMount("it has no module-level `router`")
        if not isinstance(router, APIRouter):
            kind = f"{type(router).__module__}.{type(router).__qualname__}"
            raise CannotMount(f"its `router` is a {kind}, not a fastapi.APIRouter")
        trial = APIRouter()
        trial.include_router(router)  # raises what the application would
        claims = set(_claims(trial.routes))
        for claim in sorted(claims & self._owners.keys()):
            raise CannotMount(f"{claim} is already served by {self._owners[claim]}")
        router.lifespan_context = self._guarded(found.name, router.lifespan_context)
        self._app.include_router(router)
        self._owners.update(dict.fromkeys(claims, found.name))

    def _guarded(self, name: str, lifespan: Lifespan) -> Lifespan:
        """The lifespan of a router, except that its failing does not end the application's."""

        @asynccontextmanager
        async def guarded(app: Any) -> AsyncIterator[Any]:
            async with AsyncExitStack() as stack:
                state = None
                try:
                    state = await stack.enter_async_context(lifespan(app))
                except Exception as fault:  # the module's own; its routes stay
                    self._fail(name, fault)
                yield state

        return guarded

    def _fail(self, name: str, fault: BaseException) -> None:
        self.report.failed[name] = reason = _reason(fault)
        traceback = None if isinstance(fault, CannotMount) else fault
        log.error("http api failed name=%s: %s", name, reason, exc_info=traceback)


def _claims(routes: list[BaseRoute]) -> Iterator[str]:
    """What each route answers to, as `GET /items/{}`: a parameter's name makes no difference.

    A route without methods (a WebSocket, a mount) claims `* /path`.
    """
    for route in flat(routes):
        if (path := getattr(route, "path", None)) is None:
            continue
        path = re.sub(r"{[^}:]*", "{", path)
        for method in getattr(route, "methods", None) or ("*",):
            yield f"{method} {path}"


def flat(routes: list[BaseRoute]) -> Iterable[Any]:
    """The routes of included routers too, in the order in which they are tried.

    FastAPI copied them up to 0.136, and nests them since.
    """
    flatten = getattr(fastapi.routing, "iter_route_contexts", None)
    return routes if flatten is None else flatten(routes)


def _reason(fault: BaseException) -> str:
    try:
        sentence = str(fault)
    except Exception:  # a module may raise anything, also what cannot be said
        sentence = ""
    if isinstance(fault, CannotMount):
        return sentence
    return f"{type(fault).__name__}: {sentence}" if sentence else type(fault).__name__
