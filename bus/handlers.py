"""Which handler takes which message, and how a body becomes a message. No I/O here."""

from __future__ import annotations

import logging
import traceback
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec

from bus import wire
from bus.errors import BadMessage, CallError, HandlerFailed, UnknownMessage
from bus.schema import Message, Request, message_name, reply_type, request_decoder

log = logging.getLogger(__name__)

Handler = Callable[[Any, Any], Any]
"""Takes the `Call` and the message; returns the reply or raises."""

MAX_FIELDS = 256
"""Of a message, its name included; a body of more is not taken apart to tell what is wrong."""

_DECODER_FAULTS = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)  # the sender's fault


_as_parts = msgspec.msgpack.Decoder(
    Annotated[list[msgspec.Raw], msgspec.Meta(max_length=MAX_FIELDS)]
).decode


def sentence_of(fault: Exception) -> str:
    """Class and text of an exception, also of one whose `str` raises."""
    return "".join(traceback.format_exception_only(fault)).strip()


class Handlers:
    """The messages of one server, and what it does about each."""

    def __init__(self, messages: Sequence[type[Message]]) -> None:
        self._messages = {message_name(kind): kind for kind in messages}
        self._handlers: dict[type[Message], Handler] = {}
        self._decode = request_decoder(messages).decode

    def add(self, kind: type[Message], handler: Handler) -> None:
        """Refuses a handler whose annotations name another message or another reply."""
        function = getattr(handler, "__func__", handler)
        hints = typing.get_type_hints(function)
        annotated = [hint for name, hint in hints.items() if name != "return"][-1:]
        returned = hints.get("return", Any)
        expected = reply_type(kind) if issubclass(kind, Request) else type(None)
        if annotated != [kind] or returned not in (expected, Any):
            raise TypeError(
                f"{function.__qualname__} is annotated {annotated} -> {returned},"
                f" but {kind.__name__} is answered with {expected}"
            )
        if kind not in self._messages.values():
            raise TypeError(f"{kind.__name__} is not among this server's messages")
        self._handlers[kind] = handler

    def require_all(self) -> None:
        """Raise `TypeError` if a declared message has no handler."""
        missing = sorted(n for n, kind in self._messages.items() if kind not in self._handlers)
        if missing:
            raise TypeError(f"no handler for: {', '.join(missing)}")

    def handle(self, call: Any, data: bytes) -> Any:
        """The answer to a frame, or the `CallError` that it is answered with."""
        try:
            message = self._decode(memoryview(data)[wire.HEADER.size :])
        except _DECODER_FAULTS as fault:
            raise self._undecodable(data, fault) from None
        return self.run(self._handlers[type(message)], call, message)

    @staticmethod
    def run(handler: Handler, call: Any, message: Message) -> Any:
        """What a handler returns; whatever it raises is a `CallError`."""
        try:
            return handler(call, message)
        except (CallError, MemoryError):  # without memory it may be half done: nobody goes on
            raise
        except Exception as fault:
            name = message_name(type(message))
            log.exception("handler of %s failed", name)
            raise HandlerFailed(f"{name} failed in the server: {sentence_of(fault)}") from None

    def _undecodable(self, data: bytes, fault: Exception) -> CallError:
        try:
            body = _as_parts(memoryview(data)[wire.HEADER.size :])
            name = msgspec.msgpack.decode(body[0], type=str)
        except (*_DECODER_FAULTS, IndexError):
            return BadMessage(f"the body is not a message: {fault}")
        if name not in self._messages:
            known = ", ".join(self._messages)
            return UnknownMessage(f"unknown message {name[:64]!r}; known are {known}")
        return BadMessage(f"{name}: {fault}")
