"""Messages are declared once, as frozen structs; a request names its reply type.

    class Lookup(Request[LookupReply], frozen=True, kw_only=True):
        keys: bytes

`client.call(Lookup(...))` is then a `LookupReply` to the type checker, to the client's decoder and
to the server, which refuses a handler that is annotated otherwise. On the wire a message is a
msgpack array whose first element is its name in snake_case. (msgspec's tagged unions; the idea of
one declaration for both sides is that of its asyncio-kv example.)
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any, Generic, TypeVar, get_args

import msgspec

R = TypeVar("R")


def _snake_case(class_name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", class_name).lower()


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=_snake_case):
    """Base of all messages; declare a `Request` or a `Notice`, not this."""


class Request(Message, Generic[R], frozen=True):
    """A message that is answered exactly once, with an `R` or with an error."""


class Notice(Message, frozen=True):
    """A one-way message: validated and counted by the server, never answered."""


class Done(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The reply that says no more than that it was done."""


class ErrorReply(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Body of an error answer; see `bus.errors.CallError`."""

    code: str
    message: str
    values: dict[str, int | float | str]


def message_name(kind: type[Message]) -> str:
    """The name a message goes by on the wire and in logs and metrics."""
    return str(kind.__struct_config__.tag)


@functools.cache
def reply_type(kind: type[Message]) -> Any:
    """The `R` of a `Request[R]`; `None` for a `Notice`."""
    if issubclass(kind, Notice):
        return None
    for base in getattr(kind, "__orig_bases__", ()):
        arguments = get_args(base)
        if arguments:
            return arguments[0]
    raise TypeError(f"{kind.__name__} must derive from Request[ReplyType] or from Notice")


@functools.cache
def reply_decoder(kind: type[Message]) -> msgspec.msgpack.Decoder[Any]:
    """The decoder of the answers to requests of this kind."""
    return msgspec.msgpack.Decoder(reply_type(kind))


def request_decoder(kinds: Iterable[type[Message]]) -> msgspec.msgpack.Decoder[Any]:
    """One decoder for every message a server takes."""
    union = functools.reduce(lambda left, right: left | right, kinds)  # type: ignore[arg-type, return-value]
    return msgspec.msgpack.Decoder(union)
