"""What the blocking and the asyncio client share: socket options, framing, sentences."""

from __future__ import annotations

import struct
from typing import Any, TypeVar, cast

import msgspec
import zmq

from bus import wire
from bus.errors import BadAnswer, DeadlineExceeded, MessageTooLarge, Unavailable
from bus.schema import Message, Request, message_name, reply_decoder

R = TypeVar("R")

DEALER_OPTIONS = (
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

WATCHED_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED


def means_connected(monitor_message: list[bytes]) -> bool:
    """Whether an event of the socket monitor says that the server is there; else it is lost."""
    event, _ = _MONITOR_EVENT.unpack(monitor_message[0])
    return bool(event == zmq.EVENT_HANDSHAKE_SUCCEEDED)


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
