"""What the blocking and the asyncio client share: socket options, framing, sentences."""

from __future__ import annotations

import struct
from typing import Any, TypeVar, cast

import msgspec
import zmq

from bus import wire
from bus.address import KEEPALIVE
from bus.curve import ClientCurve
from bus.errors import BadAnswer, DeadlineExceeded, MessageTooLarge, Unavailable
from bus.schema import Message, Request, message_name, reply_decoder

R = TypeVar("R")

DEALER_OPTIONS = (
    *KEEPALIVE,
    (zmq.LINGER, 0),
    (zmq.IMMEDIATE, 1),  # never queue for a server that is not there
    (zmq.RECONNECT_IVL, -1),  # one connection, one incarnation of the server
    (zmq.SNDHWM, 256),
    (zmq.RCVHWM, 256),
)

MAX_OPEN_CALLS = 128
"""Calls in flight on one connection: fewer than the answers a server queues for a slow peer.

Further ones wait for their turn within their deadline."""

_MONITOR_EVENT = struct.Struct("=Hi")  # zmq_socket_monitor(3); pyzmq's own parser needs asyncio

WATCHED_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
)


def options(curve: ClientCurve | None) -> tuple[tuple[int, int | bytes], ...]:
    """Of a client's socket."""
    return DEALER_OPTIONS if curve is None else (*DEALER_OPTIONS, *curve.options())


def why_lost(monitor_message: list[bytes], curve: ClientCurve | None) -> str:
    """Why there is no connection, as an event of the socket monitor has it; empty if there is."""
    event, value = _MONITOR_EVENT.unpack(monitor_message[0])
    if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
        return ""
    if event == zmq.EVENT_CLOSED:
        return "nobody listens there"
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        key = f" with the key {curve.public_key.decode()}" if curve is not None else ""
        return f"who listens there refuses this client{key}: it is not on the server's list"
    mismatch = (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
    if (event, value) == mismatch and curve is not None:
        return "who listens there takes no keys: connect without one"
    if (event, value) == mismatch:
        return "who listens there requires a key, and this client has none"
    if curve is not None:
        return "it broke the handshake off: the key may be for another server"
    return "it broke the handshake off: it may require a key, and this client has none"


def outgoing(
    kind: int, call_id: int, epoch: int, message: Message, max_message_bytes: int
) -> bytes:
    """The frame of a message, or `MessageTooLarge`: a server would end the connection over it."""
    data = wire.frame(kind, call_id, epoch, message)
    if len(data) > max_message_bytes:
        raise MessageTooLarge(
            f"{message_name(type(message))} of {len(data)} bytes is larger than the bus takes"
            f" ({max_message_bytes}): send it in parts"
        )
    return data


def call_id_of(data: bytes) -> int:
    """The call that a frame of the server answers."""
    return int(wire.HEADER.unpack_from(data)[4])


def answer(request: Request[R], data: bytes) -> R:
    """The reply in a frame; raises the `CallError` if it carries one, `BadAnswer` if neither."""
    if data[3] == wire.ERROR:
        raise wire.decode_error(data)
    try:
        return cast(R, reply_decoder(type(request)).decode(memoryview(data)[wire.HEADER.size :]))
    except msgspec.DecodeError as fault:
        name = message_name(type(request))
        raise BadAnswer(f"the answer to {name} is not what it should be: {fault}") from None


def unavailable(address: str, why: str) -> Unavailable:
    """Nobody is there, and how that was noticed."""
    return Unavailable(f"no server at {address}: {why}")


def deadline_exceeded(address: str, request: Request[Any], timeout_s: float) -> DeadlineExceeded:
    """It is there, and does not answer."""
    return DeadlineExceeded(
        f"no answer to {message_name(type(request))} from {address} in {timeout_s:g} s"
    )
