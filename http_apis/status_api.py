"""GET /status: what the engine reports, and what this process knows besides."""

from __future__ import annotations

import os
import time

import msgspec
from fastapi import APIRouter, Request

from http_apis.engine import ReadyEngine
from http_apis.errors import NEEDS_ENGINE
from http_apis.registry import RegistryReport
from http_apis.structs import Json
from lmcache_mp import messages

router = APIRouter()

_STARTED_S = time.monotonic()


class ServerStatus(messages.StatusReport, frozen=True, kw_only=True):
    """Answer to GET /status: the engine's report and the account of the API modules."""

    http_apis: RegistryReport


@router.get("/status", summary="What is going on?", responses=NEEDS_ENGINE)
async def status(request: Request, engine: ReadyEngine) -> Json[ServerStatus]:
    """`processes` maps "engine", "http" and "supervisor" to their pids, states and restarts."""
    report = await engine.call(messages.Status())
    processes = {**report.processes, "http": this_process(report.processes.get("http"))}
    fields = {**msgspec.structs.asdict(report), "processes": processes}
    return ServerStatus(**fields, http_apis=request.app.state.http_apis)


def this_process(watched: messages.ProcessInfo | None) -> messages.ProcessInfo:
    """This very process; what the supervisor says of its predecessor may still stand."""
    uptime_s = round(time.monotonic() - _STARTED_S, 3)
    if watched is None:
        return messages.ProcessInfo(pid=os.getpid(), uptime_s=uptime_s)
    return msgspec.structs.replace(watched, pid=os.getpid(), uptime_s=uptime_s, state="running")
