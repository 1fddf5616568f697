"""The server side: one ROUTER socket, one thread, one loop.

Each well-framed request gets exactly one answer: what its handler returned, the error it raised,
or, if the handler returned `DEFERRED`, whatever is given to its `Call` later. A peer that does not
read its answers loses them (the socket never blocks); `on_undeliverable` is told, so that what an
answer granted can be taken back. Bytes that are not well framed cost the peer its connection.

An address is open to whoever reaches it (a socket file's mode says who that is), or has CURVE: then
it encrypts, and takes only the clients whose keys are on the list; see `bus.curve`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import zmq

from bus import wire
from bus.address import KEEPALIVE, BadAddress, validate_address
from bus.call import DEFERRED, Call
from bus.curve import ServerCurve
from bus.errors import CallError, StaleEpoch, WrongVersion
from bus.gate import Gate
from bus.handlers import Handlers
from bus.limited_log import LimitedLog
from bus.schema import Message, Notice, Request
from bus.timers import Timers

R = TypeVar("R")
log = logging.getLogger(__name__)

TICK_S = 0.1
"""The longest the loop sleeps: bounds how late a timer or a stop may be on an idle server."""

LOOK_EVERY_S = 0.01
"""How often what happened to connections is counted and logged."""


@dataclass(slots=True)
class ServerCounters:
    """What a server saw since it started."""

    messages: int = 0
    errors: int = 0
    not_well_framed: int = 0
    undeliverable: int = 0
    refused: int = 0
    """Connections that never became a peer's: no right to it, another protocol, no handshake."""


class Server:
    """A bus server. Not thread-safe, except for `stop`."""

    def __init__(
        self,
        messages: Sequence[type[Message]],
        *,
        epoch: int,
        max_message_bytes: int = wire.MAX_MESSAGE_BYTES,
        queue_messages: int = 256,
        on_undeliverable: Callable[[Call], None] | None = None,
    ) -> None:
        """`queue_messages`: answers that wait for a slow peer before further ones are lost."""
        self.epoch = epoch
        self.counters = ServerCounters()
        self._handlers = Handlers(messages)
        self.on_undeliverable = on_undeliverable
        """Told of calls whose answer their caller did not take."""
        self._timers = Timers()
        self._stopping = False
        self._serving: zmq.Frame | None = None
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
        self._socket.setsockopt(zmq.SNDHWM, queue_messages)
        self._socket.setsockopt(zmq.RCVHWM, queue_messages)
        self._socket.setsockopt(zmq.RCVTIMEO, int(TICK_S * 1000))
        for option, value in KEEPALIVE:
            self._socket.setsockopt(option, value)
        self._log = LimitedLog(log)
        self._gate = Gate(self._context, self._socket, self._log)
        self._timers.every(LOOK_EVERY_S, self._look_at_connections)

    def on(self, kind: type[Request[R]], handler: Callable[[Call, Any], R]) -> None:
        """Answer requests of `kind` with what `handler(call, message)` returns or raises."""
        self._handlers.add(kind, handler)

    def on_notice(self, kind: type[Notice], handler: Callable[[Call, Any], None]) -> None:
        """Hand one-way messages of `kind` to `handler(call, message)`."""
        self._handlers.add(kind, handler)

    def every(self, seconds: float, callback: Callable[[float], None]) -> None:
        """Call `callback(now_s)` about every so many seconds, between two messages."""
        self._timers.every(seconds, callback)

    def bind(
        self, address: str, *, curve: ServerCurve | None = None, group: int | None = None
    ) -> str:
        """Listen at `address`; returns it with the port filled in.

        A socket file is 0600 from the start, then 0660 if there is a `group` for it. The first
        `curve` is that of all addresses with one.
        """
        validate_address(address)
        self._gate.set_for_next_address(curve)
        previous = os.umask(0o177)
        try:
            self._socket.bind(address)
            if group is not None and address.startswith("ipc://"):
                os.chown(address.removeprefix("ipc://"), -1, group)
                os.chmod(address.removeprefix("ipc://"), 0o660)
        except (zmq.ZMQError, OSError) as fault:
            raise BadAddress(f"cannot listen at {address}: {fault.strerror}") from None
        finally:
            os.umask(previous)
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def stop(self) -> None:
        """End `run` within a tick. May be called from a signal handler or another thread."""
        self._stopping = True

    def is_connected(self, peer: bytes) -> bool:
        """Whether a peer is still there. It is sent a notice, which clients disregard."""
        try:
            self._socket.send(peer, zmq.SNDMORE | zmq.DONTWAIT)
            self._socket.send(wire.frame(wire.NOTICE, 0, self.epoch, None), zmq.DONTWAIT)
        except zmq.ZMQError as fault:
            return fault.errno != zmq.EHOSTUNREACH
        return True

    def run(self) -> None:
        """Serve until `stop`. Refuses to start while a declared message has no handler."""
        self._handlers.require_all()
        clock = time.monotonic
        timers = self._timers
        while not self._stopping:
            try:
                peer = self._socket.recv()
                frame = self._socket.recv(copy=False)
            except zmq.Again:
                pass
            else:
                self._serve(peer, frame)
            if (now_s := clock()) >= timers.due_s:
                timers.run_due(now_s)

    def close(self) -> None:
        """Close the socket; answers that a peer has not yet taken are dropped."""
        self._gate.close()

    def _look_at_connections(self, now_s: float) -> None:
        self._gate.look(now_s)
        self.counters.refused = self._gate.refused

    def _serve(self, peer: bytes, frame: zmq.Frame) -> None:
        self.counters.messages += 1
        data = frame.bytes
        try:
            if frame.more:
                raise wire.NotWellFramed("more than one frame")
            version, kind, call_id, epoch = wire.parse(data)
            if kind not in (wire.REQUEST, wire.NOTICE):
                raise wire.NotWellFramed(f"a frame of kind {kind} is no request")
        except wire.NotWellFramed as fault:
            self._disconnect(peer, frame, fault)
            return
        self._serving = frame
        call = Call(self, peer, call_id, owed=kind == wire.REQUEST)
        try:
            self._check(version, epoch)
            answer = self._handlers.handle(call, data)
        except CallError as error:
            if kind == wire.REQUEST:
                call.fail(error)
            else:
                self.counters.errors += 1
            return
        if kind == wire.REQUEST and answer is not DEFERRED:
            call.answer(answer)

    def _check(self, version: int, epoch: int) -> None:
        if version != wire.PROTOCOL_VERSION:
            raise WrongVersion(
                f"the message is of protocol version {version}, this server speaks"
                f" {wire.PROTOCOL_VERSION}: upgrade the older of the two",
                version=version,
                expected=wire.PROTOCOL_VERSION,
            )
        if epoch not in (wire.NO_EPOCH, self.epoch):
            raise StaleEpoch(
                f"the message is for epoch {epoch}, this server's is {self.epoch}: say hello again",
                epoch=epoch,
                expected=self.epoch,
            )

    def _send(self, call: Call, data: bytes) -> None:
        try:
            self._socket.send(call.peer, zmq.SNDMORE | zmq.DONTWAIT)
            self._socket.send(data, zmq.DONTWAIT)
        except zmq.ZMQError as fault:  # EHOSTUNREACH: gone; EAGAIN: it does not read
            if fault.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self.counters.undeliverable += 1
            if self.on_undeliverable is not None:
                self.on_undeliverable(call)

    def _disconnect(self, peer: bytes, frame: zmq.Frame, fault: wire.NotWellFramed) -> None:
        """End the connection that `frame` came by; libzmq notices as if the peer had left."""
        self.counters.not_well_framed += 1
        descriptor, origin = frame.get(zmq.SRCFD), frame.get("Peer-Address")
        while frame.more:
            frame = self._socket.recv(copy=False)
        self._log.say(
            time.monotonic(),
            logging.WARNING,
            "dropped a connection of %s: not well framed: %s",
            origin,
            fault,
        )
        if (begun := self._begin_answer(peer)) is None:
            return  # it has left, and its descriptor may be another connection's by now
        with (
            contextlib.suppress(OSError),
            socket.fromfd(descriptor, socket.AF_UNIX, socket.SOCK_STREAM) as connection,
        ):
            connection.shutdown(socket.SHUT_RDWR)
        if begun:
            self._socket.send(b"", zmq.DONTWAIT)  # what was begun must end; it reaches nobody

    def _begin_answer(self, peer: bytes) -> bool | None:
        """Whether an answer was begun, which must then be ended; None if the peer is gone."""
        self._socket.getsockopt(zmq.EVENTS)  # lets the socket hear of who has left
        try:
            self._socket.send(peer, zmq.SNDMORE | zmq.DONTWAIT)
        except zmq.ZMQError as fault:
            return None if fault.errno == zmq.EHOSTUNREACH else False
        return True
