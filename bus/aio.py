"""The asyncio client: many calls at once over one connection.

One reader task hands each answer to the future of its call id. (A reader per call would not do: a
cancelled `zmq.asyncio` receive gives its answer to the next caller.)
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, TypeVar

import zmq
import zmq.asyncio

from bus import wire
from bus.address import validate_address
from bus.curve import ClientCurve
from bus.dealer import (
    MAX_OPEN_CALLS,
    WATCHED_EVENTS,
    answer,
    call_id_of,
    deadline_exceeded,
    options,
    outgoing,
    unavailable,
    why_lost,
)
from bus.schema import Message, Notice, Request

R = TypeVar("R")


class AsyncClient:
    """One connection to one incarnation of a server; use `await AsyncClient.connect(address)`."""

    def __init__(
        self,
        address: str,
        *,
        max_message_bytes: int = wire.MAX_MESSAGE_BYTES,
        curve: ClientCurve | None = None,
    ) -> None:
        self.address = validate_address(address)
        self.epoch = wire.NO_EPOCH
        self._max_message_bytes = max_message_bytes
        self._call_ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._room = asyncio.Semaphore(MAX_OPEN_CALLS)
        self._curve = curve
        self._why_lost = ""
        self._settled = asyncio.Event()  # the first event of the connection has come
        self._lost = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        context = zmq.asyncio.Context(shadow=zmq.Context.instance())  # one I/O thread for all
        self._socket = context.socket(zmq.DEALER)
        for option, value in options(curve):
            self._socket.setsockopt(option, value)
        self._monitor = self._socket.get_monitor_socket(WATCHED_EVENTS)

    @classmethod
    async def connect(
        cls, address: str, *, timeout_s: float = 5.0, curve: ClientCurve | None = None
    ) -> AsyncClient:
        """A connected client; `Unavailable` at once if nobody listens or this client is refused,
        else after `timeout_s`.
        """
        client = cls(address, curve=curve)
        try:
            client._tasks = [
                asyncio.create_task(client._watch()),
                asyncio.create_task(client._read()),
            ]
            client._socket.connect(address)
            async with asyncio.timeout(timeout_s):
                await client._settled.wait()
            if not client.connected:
                raise unavailable(address, client._why_lost)
        except TimeoutError:
            await client.close()
            raise unavailable(address, f"no connection within {timeout_s:g} s") from None
        except BaseException:
            await client.close()
            raise
        return client

    @property
    def connected(self) -> bool:
        """False for ever once the connection is lost."""
        return self._settled.is_set() and not self._lost.is_set()

    async def wait_lost(self) -> None:
        """Return when the connection is lost."""
        await self._lost.wait()

    async def call(self, request: Request[R], timeout_s: float = 5.0) -> R:
        """Send a request and await its answer; raises what `bus.Client.call` raises."""
        try:
            async with asyncio.timeout(timeout_s), self._room:
                return answer(request, await self._answer_to(request))
        except TimeoutError:
            raise deadline_exceeded(self.address, request, timeout_s) from None

    async def notify(self, notice: Notice) -> None:
        """Send a one-way message; raises `Unavailable` if it cannot even be queued."""
        await self._send(wire.NOTICE, next(self._call_ids), notice)

    async def close(self) -> None:
        """Drop the connection; open calls end as `Unavailable`."""
        self._give_up("the client was closed")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
            self._socket.close(linger=0)

    async def _answer_to(self, request: Request[Any]) -> bytes:
        call_id = next(self._call_ids)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[call_id] = future
        try:
            await self._send(wire.REQUEST, call_id, request)
            return await future
        finally:
            del self._waiting[call_id]

    async def _send(self, kind: int, call_id: int, message: Message) -> None:
        data = outgoing(kind, call_id, self.epoch, message, self._max_message_bytes)
        if not self.connected:
            raise unavailable(self.address, "not connected")
        try:
            await self._socket.send(data, zmq.DONTWAIT)
        except zmq.Again:  # a look at its events is how libzmq learns what the server has taken
            if not int(self._socket.get(zmq.EVENTS)) & zmq.POLLOUT:
                raise unavailable(self.address, "it takes no more messages") from None
            await self._socket.send(data, zmq.DONTWAIT)

    async def _read(self) -> None:
        while True:
            data = await self._socket.recv()
            future = self._waiting.get(call_id_of(data))
            if future is not None and not future.done():
                future.set_result(data)

    async def _watch(self) -> None:
        while True:
            if why := why_lost(await self._monitor.recv_multipart(), self._curve):
                self._why_lost = self._why_lost or why
                self._give_up("the connection broke while the call was open")
            self._settled.set()

    def _give_up(self, why: str) -> None:
        self._lost.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(unavailable(self.address, why))
