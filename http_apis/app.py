"""The application: its shared state, its errors, its routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from http_apis import errors
from http_apis.door import Door
from http_apis.engine_link import EngineLink
from http_apis.guard import Guard
from http_apis.registry import HTTPAPIRegistry, flat
from lmcache_mp import __version__


def create_app(bus_address: str, door: Door, api_dirs: Iterable[Path] = ()) -> FastAPI:
    """The application; it lets in whom `door` lets in, and follows the engine behind a bus."""

    @asynccontextmanager
    async def follow_engine(app: FastAPI) -> AsyncIterator[None]:
        link = asyncio.create_task(EngineLink(bus_address, app.state).run(), name="engine link")
        yield
        link.cancel()
        await asyncio.gather(link, return_exceptions=True)

    app = FastAPI(title="lmcache-mp", version=__version__, lifespan=follow_engine)
    app.state.engine = None
    app.state.zmq_server = None
    app.state.door = door
    errors.install(app)
    HTTPAPIRegistry(app, api_dirs).register_all_apis()
    app.add_middleware(Guard, door=door, routes=list(flat(app.routes)))
    return app
