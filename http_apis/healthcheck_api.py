"""GET /healthcheck: the engine answers, now."""

from __future__ import annotations

from typing import Literal

import msgspec
from fastapi import APIRouter, Request, Response

from bus import BusError
from http_apis.engine import ready_engine
from http_apis.structs import Json
from lmcache_mp import messages

router = APIRouter()

PROBE_TIMEOUT_S = 0.8
"""Less than the one second after which Kubernetes gives up a probe unless told otherwise."""


class Health(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Answer to GET /healthcheck; a reason only if there is one."""

    status: Literal["healthy", "unhealthy"]
    reason: str = ""


@router.get(
    "/healthcheck",
    summary="Does the engine answer?",
    responses={503: {"model": Json[Health], "description": "It does not, for the reason given"}},
)
async def healthcheck(request: Request, response: Response) -> Json[Health]:
    """The engine is really asked, with a short deadline."""
    try:
        engine = await ready_engine(request)
        await engine.call(messages.Heartbeat(), PROBE_TIMEOUT_S)
    except BusError as fault:
        response.status_code = 503
        return Health(status="unhealthy", reason=str(fault))
    return Health(status="healthy")
