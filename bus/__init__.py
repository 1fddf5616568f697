"""A typed message bus over ZMQ ROUTER/DEALER. It knows nothing of caches.

Reading order: `errors`, `schema`, `wire`, `address`; `handlers`, `timers`, `server`; `dealer`,
`client`, `aio`. The last is imported by its own name, `from bus.aio import AsyncClient`: most
processes need no asyncio.
"""

from bus.address import BadAddress, validate_address
from bus.client import Client, PendingCall
from bus.errors import (
    BadAnswer,
    BadMessage,
    BusError,
    CallError,
    DeadlineExceeded,
    HandlerFailed,
    MessageTooLarge,
    StaleEpoch,
    Unavailable,
    UnknownMessage,
    WrongThread,
    WrongVersion,
)
from bus.schema import Done, Message, Notice, Request, message_name
from bus.server import DEFERRED, Call, Server, ServerCounters
from bus.wire import PROTOCOL_VERSION

__all__ = [
    "DEFERRED",
    "PROTOCOL_VERSION",
    "BadAddress",
    "BadAnswer",
    "BadMessage",
    "BusError",
    "Call",
    "CallError",
    "Client",
    "DeadlineExceeded",
    "Done",
    "HandlerFailed",
    "Message",
    "MessageTooLarge",
    "Notice",
    "PendingCall",
    "Request",
    "Server",
    "ServerCounters",
    "StaleEpoch",
    "Unavailable",
    "UnknownMessage",
    "WrongThread",
    "WrongVersion",
    "message_name",
    "validate_address",
]
