"""POST /clear-cache: forget every chunk of L1."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter

from http_apis.engine import ReadyEngine
from http_apis.errors import NEEDS_ENGINE
from http_apis.structs import Json
from lmcache_mp import messages

router = APIRouter()


class CacheCleared(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to POST /clear-cache."""

    status: str = "ok"
    cleared_chunks: int


@router.post("/clear-cache", summary="Forget every chunk of L1", responses=NEEDS_ENGINE)
async def clear_cache(engine: ReadyEngine) -> Json[CacheCleared]:
    """Safe at any moment: what is leased or pinned stays valid until it is given back."""
    cleared = await engine.call(messages.Clear())
    return CacheCleared(cleared_chunks=cleared.cleared_chunks)
