"""What a route sees of the cache engine: `app.state.engine` and `app.state.zmq_server`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import fastapi
from fastapi import Depends

from bus import DeadlineExceeded, Request, Unavailable, message_name
from bus.aio import AsyncClient

R = TypeVar("R")

CALL_TIMEOUT_S = 5.0
"""How long a route waits for the engine unless it says otherwise; then the answer is 504."""

MAX_OPEN_CALLS = 128
"""Calls in flight: fewer than the answers that the engine queues for one peer before it drops some.

Further ones wait their turn within their deadline."""

FULL_QUEUE_DELAY_S = 0.005


class EngineAway(Unavailable):
    """The engine has not answered yet, or is being restarted."""

    def __init__(self) -> None:
        super().__init__("engine not initialized")


@dataclass(frozen=True, slots=True)
class Engine:
    """The cache engine, one incarnation of it: get it anew from `app.state` for each request."""

    client: AsyncClient = field(repr=False)
    _room: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(MAX_OPEN_CALLS), init=False, repr=False
    )

    async def call(self, request: Request[R], timeout_s: float = CALL_TIMEOUT_S) -> R:
        """Send one message of `lmcache_mp.messages` and await its answer.

        Raises `EngineAway` if the engine dies meanwhile, `bus.DeadlineExceeded` if it hangs, or the
        `bus.CallError` that it answered with; a route lets them pass, `http_apis.errors` knows
        them.
        """
        try:
            async with asyncio.timeout(timeout_s), self._room:
                return await self._sent(request, timeout_s)
        except TimeoutError:
            name = message_name(type(request))
            raise DeadlineExceeded(f"the engine did not answer {name} in {timeout_s:g} s") from None

    async def _sent(self, request: Request[R], timeout_s: float) -> R:
        while True:
            try:
                return await self.client.call(request, timeout_s)
            except Unavailable:
                if not self.client.connected:
                    raise EngineAway from None
            await asyncio.sleep(FULL_QUEUE_DELAY_S)  # it was not sent: the queue is full, for now


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
