"""The blocking client: it talks to its socket directly, so it belongs to one thread.

A client is one connection to one incarnation of a server. Once that is lost the client stays
`Unavailable`; make a new one and say hello again (libzmq would hand what was queued for a dead
server to its successor).
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import zmq

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
from bus.errors import WrongThread
from bus.schema import Message, Notice, Request

R = TypeVar("R")

FAST_ANSWER_MS = 10
"""Answers are awaited on the bare socket that long; then the connection is watched as well.

A poll over both costs 10 us more than a bare recv; a dead server is noticed that much later. (With
2 ms the kernel's timer slack makes each call some 5 us slower.)"""

ROOM_TIMEOUT_S = 5.0
"""How long a server may take no further message before it counts as gone."""


class PendingCall(Generic[R]):
    """A request on its way. Ask for its `result` once."""

    __slots__ = ("_client", "_request", "call_id")

    def __init__(self, client: Client, request: Request[R], call_id: int) -> None:
        self._client = client
        self._request = request
        self.call_id = call_id

    def result(self, timeout_s: float = 5.0) -> R:
        """The answer; raises what `Client.call` raises."""
        self._client._check_owner()
        return self._client._result(self._request, self.call_id, timeout_s)

    def done(self) -> bool:
        """Whether `result` would return or raise at once."""
        self._client._check_owner()
        return self._client._arrived(self.call_id)


class Client:
    """One connection. Call it from the thread that made it."""

    def __init__(
        self,
        address: str,
        *,
        connect_timeout_s: float = 5.0,
        call_ids: Iterator[int] | None = None,
        max_message_bytes: int = wire.MAX_MESSAGE_BYTES,
        curve: ClientCurve | None = None,
        context: zmq.Context[Any] | None = None,
    ) -> None:
        """Connect; raises `Unavailable` at once if nobody listens or this client is refused, else
        after `connect_timeout_s`.

        `call_ids` lets several connections of one caller share one sequence of ids. `curve`: for
        an address that requires a key.
        """
        self.address = validate_address(address)
        self.epoch = wire.NO_EPOCH
        self._max_message_bytes = max_message_bytes
        self._call_ids = call_ids if call_ids is not None else itertools.count(1)
        self._open: set[int] = set()
        self._answers: dict[int, bytes] = {}
        self._owner = (os.getpid(), threading.get_ident())
        self._curve = curve
        self._connected = False
        self._lost = ""
        """Why, if the connection is lost or did not come about."""
        self._closed = False
        try:
            self._socket = (context or zmq.Context.instance()).socket(zmq.DEALER)
            for option, value in options(curve):
                self._socket.setsockopt(option, value)
            self._socket.setsockopt(zmq.RCVTIMEO, FAST_ANSWER_MS)
            self._monitor = self._socket.get_monitor_socket(WATCHED_EVENTS)
        except zmq.ZMQError as fault:  # no descriptors left, say
            if hasattr(self, "_socket"):
                self._socket.close(linger=0)
            raise unavailable(address, f"no socket for it: {fault.strerror}") from None
        try:
            self._socket.connect(address)
            if not self._monitor.poll(int(connect_timeout_s * 1000)):
                raise unavailable(address, f"no connection within {connect_timeout_s:g} s")
            self._drain()
            if not self._connected:
                raise unavailable(address, self._lost)
        except BaseException:
            self.close()
            raise

    @property
    def connected(self) -> bool:
        """False for ever once the connection was seen to be lost."""
        return self._connected

    def call(self, request: Request[R], timeout_s: float = 5.0) -> R:
        """Send a request and wait for its answer.

        Raises `Unavailable` (not sent, or the server died under it), `DeadlineExceeded`, or the
        `CallError` that the server answered with.
        """
        return self._result(request, self._request(request), timeout_s)

    def start(self, request: Request[R], call_id: int | None = None) -> PendingCall[R]:
        """Send a request now and ask for its answer later: many may be open.

        `call_id` must be one of the caller's own sequence of `call_ids`.
        """
        return PendingCall(self, request, self._request(request, call_id))

    def notify(self, notice: Notice) -> None:
        """Send a one-way message; raises `Unavailable` if it cannot even be queued."""
        self._check_owner()
        self._send(wire.NOTICE, notice)

    def close(self) -> None:
        """Drop the connection. What was queued and not yet sent is lost."""
        if self._closed:
            return
        self._closed = True
        self._connected = False
        if self._owner[0] == os.getpid():
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
            self._socket.close(linger=0)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _check_owner(self) -> None:
        if self._owner[1] != threading.get_ident() or self._owner[0] != os.getpid():
            raise WrongThread(
                "a bus client belongs to the thread that made it: make one per thread"
            )

    def _request(self, request: Request[Any], call_id: int | None = None) -> int:
        self._check_owner()
        if len(self._open) >= MAX_OPEN_CALLS:
            self._await_room(self._has_room_for_a_call, zmq.POLLIN)
        call_id = self._send(wire.REQUEST, request, call_id)
        self._open.add(call_id)
        return call_id

    def _send(self, kind: int, message: Message, call_id: int | None = None) -> int:
        if call_id is None:
            call_id = next(self._call_ids)
        data = outgoing(kind, call_id, self.epoch, message, self._max_message_bytes)
        if self._closed:
            raise unavailable(self.address, "the client is closed")
        try:
            self._socket.send(data, zmq.DONTWAIT)
        except zmq.Again:
            self._await_room(self._is_writable, zmq.POLLOUT)
            self._socket.send(data, zmq.DONTWAIT)
        return call_id

    def _result(self, request: Request[R], call_id: int, timeout_s: float) -> R:
        data = self._answers.pop(call_id, None)
        if data is None:
            try:
                data = self._await_answer(request, call_id, timeout_s)
            finally:
                self._open.discard(call_id)
        return answer(request, data)

    def _await_answer(self, request: Request[Any], call_id: int, timeout_s: float) -> bytes:
        deadline_s = time.monotonic() + timeout_s
        try:
            while not self._closed:  # the fast path: a bare recv
                data: bytes = self._socket.recv()
                if call_id_of(data) == call_id:
                    return data
                self._keep(data)
        except zmq.Again:
            pass
        while True:
            self._drain()
            if (arrived := self._answers.pop(call_id, None)) is not None:
                return arrived
            if not self._connected:
                raise unavailable(self.address, "the connection broke while the call was open")
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise deadline_exceeded(self.address, request, timeout_s)
            self._poll(zmq.POLLIN, left_s)

    def _await_room(self, ready: Callable[[], bool], events: int) -> None:
        deadline_s = time.monotonic() + ROOM_TIMEOUT_S
        while True:
            self._drain()
            if not self._connected:
                raise unavailable(self.address, "not connected")
            if ready():
                return
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise unavailable(self.address, f"it took no message for {ROOM_TIMEOUT_S:g} s")
            self._poll(events, left_s)

    def _has_room_for_a_call(self) -> bool:
        return len(self._open) < MAX_OPEN_CALLS

    def _is_writable(self) -> bool:
        return bool(self._socket.getsockopt(zmq.EVENTS) & zmq.POLLOUT)

    def _poll(self, events: int, timeout_s: float) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, events)
        poller.register(self._monitor, zmq.POLLIN)
        poller.poll(int(timeout_s * 1000) + 1)

    def _arrived(self, call_id: int) -> bool:
        self._drain()
        return call_id in self._answers or not self._connected

    def _keep(self, data: bytes) -> None:
        call_id = call_id_of(data)
        if call_id in self._open:  # else its caller has given up
            self._open.discard(call_id)
            self._answers[call_id] = data

    def _drain(self) -> None:
        """Take what has arrived: events first, so that no answer before the end is overlooked."""
        while not self._closed and self._monitor.poll(0):
            why = why_lost(self._monitor.recv_multipart(), self._curve)
            self._connected = not why
            self._lost = self._lost or why  # the first reason; others follow from it
        try:
            while not self._closed:
                self._keep(self._socket.recv(zmq.DONTWAIT))
        except zmq.Again:
            pass
