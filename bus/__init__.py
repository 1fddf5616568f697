"""A typed message bus over ZMQ ROUTER/DEALER. It knows nothing of caches.

Reading order: `errors`, `schema`, `wire`, `address`, `curve`; `handlers`, `timers`, `limited_log`,
`handshakes`, `gate`, `call`, `server`; `dealer`, `client`, `aio`. The last is imported by its own
name, `from bus.aio import AsyncClient`: most processes need no asyncio.
"""

from bus.address import BadAddress, validate_address
from bus.call import DEFERRED, Call
from bus.client import Client, PendingCall
from bus.curve import ClientCurve, ServerCurve
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
from bus.server import Server, ServerCounters
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
    "ClientCurve",
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
    "ServerCurve",
    "StaleEpoch",
    "Unavailable",
    "UnknownMessage",
    "WrongThread",
    "WrongVersion",
    "message_name",
    "validate_address",
]
