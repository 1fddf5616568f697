"""What a route sees of the cache engine: `app.state.engine` and `app.state.zmq_server`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import fastapi
from fastapi import Depends

from bus import Request, Unavailable
from bus.aio import AsyncClient

R = TypeVar("R")

CALL_TIMEOUT_S = 5.0
"""How long a route waits for the engine unless it says otherwise; then the answer is 504."""


class EngineAway(Unavailable):
    """The engine has not answered yet, or is being restarted."""

    def __init__(self) -> None:
        super().__init__("engine not initialized")


@dataclass(frozen=True, slots=True)
class Engine:
    """The cache engine, one incarnation of it: get it anew from `app.state` for each request."""

    client: AsyncClient = field(repr=False)

    async def call(self, request: Request[R], timeout_s: float = CALL_TIMEOUT_S) -> R:
        """Send one message of `lmcache_mp.messages` and await its answer.

        Raises `EngineAway` if the engine dies meanwhile, `bus.DeadlineExceeded` if it hangs, or the
        `bus.CallError` that it answered with; a route lets them pass, `http_apis.errors` knows
        them.
        """
        try:
            return await self.client.call(request, timeout_s)
        except Unavailable:
            if self.client.connected:
                raise
            raise EngineAway from None


@dataclass(frozen=True, slots=True)
class ZmqServer:
    """Handle of the ZMQ server behind the engine, as its hello and its report described it."""

    endpoint: str
    epoch: int
    pid: int
    client: AsyncClient = field(repr=False)

    async def call(self, request: Request[R], timeout_s: float = CALL_TIMEOUT_S) -> R:
        """The raw call: any message of the bus, and the bus's own errors."""
        return await self.client.call(request, timeout_s)


async def ready_engine(request: fastapi.Request) -> Engine:
    """The engine of this moment; `EngineAway` if there is none."""
    engine: Engine | None = request.app.state.engine
    if engine is None:
        raise EngineAway
    return engine


ReadyEngine = Annotated[Engine, Depends(ready_engine)]
"""Parameter type of a route that needs the engine: without one the answer is 503."""
