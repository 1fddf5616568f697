"""Keeps `app.state.engine` true: the engine when there is one, None when there is not."""

from __future__ import annotations

import asyncio
import os

from starlette.datastructures import State

from bus.aio import AsyncClient
from http_apis.engine import Engine, ZmqServer
from lmcache_mp import messages
from lmcache_mp.logging import init_logger

log = init_logger(__name__)

FIRST_DELAY_S = 0.02
LAST_DELAY_S = 1.0
"""Pauses between two attempts: a restarted engine is found soon, a missing one costs nothing."""


class EngineLink:
    """One asyncio task that connects, says hello as an observer, waits for the end, and again.

    The engine's life is seen by the connection's: a stopped engine keeps its place in `app.state`,
    its calls end at their deadlines.
    """

    def __init__(self, address: str, state: State) -> None:
        self.address = address
        self._state = state
        self._said = ""  # the last failure in the log, so that a lasting one is told once

    async def run(self) -> None:
        """Follow the engine until cancelled."""
        delay_s = FIRST_DELAY_S
        while True:
            try:
                await self._follow_one_life()
                delay_s = FIRST_DELAY_S
            except Exception as fault:  # away, hanging, of another version, no descriptors left
                self._say(f"{type(fault).__name__}: {fault}")
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, LAST_DELAY_S)

    async def _follow_one_life(self) -> None:
        client = await AsyncClient.connect(self.address)
        try:
            server = await greet(client)
            self._state.engine, self._state.zmq_server = Engine(client), server
            self._said = ""
            log.info("engine connected pid=%d epoch=%d", server.pid, server.epoch)
            await client.wait_lost()
            log.info("engine lost pid=%d epoch=%d; connecting again", server.pid, server.epoch)
        finally:
            self._state.engine = self._state.zmq_server = None
            await client.close()

    def _say(self, failure: str) -> None:
        if failure != self._said:
            self._said = failure
            log.info("engine away: %s", failure)


async def greet(client: AsyncClient) -> ZmqServer:
    """Say hello as an observer and learn who is there; later messages carry its epoch."""
    welcome = await client.call(messages.Hello(who="http", pid=os.getpid()))
    client.epoch = welcome.epoch
    report = await client.call(messages.Status())
    return ZmqServer(
        endpoint=client.address,
        epoch=welcome.epoch,
        pid=report.processes["engine"].pid,
        client=client,
    )
