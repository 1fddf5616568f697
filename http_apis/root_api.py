"""GET /: this process answers. It says nothing of the engine, so that nobody restarts for it."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter

from http_apis.structs import Json
from lmcache_mp import __version__

router = APIRouter()


class Alive(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to GET /."""

    status: str = "ok"
    service: str = "lmcache-mp"
    version: str = __version__


@router.get("/", summary="Is the HTTP process alive?")
async def root() -> Json[Alive]:
    """200 from the first moment on, whether there is an engine or not."""
    return Alive()
