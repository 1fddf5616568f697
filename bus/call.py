"""A request that a server has not answered yet."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from bus import wire
from bus.errors import CallError, HandlerFailed
from bus.handlers import Handler, Handlers, sentence_of
from bus.schema import Message

if TYPE_CHECKING:
    from bus.server import Server

log = logging.getLogger(__name__)

DEFERRED: Final[Any] = object()
"""What a handler returns to keep its call open; it then owes the `Call` an answer."""

UNIX_PEER = "localhost:"
"""So begins what libzmq calls the address of a peer on a Unix socket; others' is an IP address."""


class Call:
    """One open request. `peer` is the sender's routing id: unique, and never used again unless the
    peer has chosen it itself.
    """

    __slots__ = ("_owed", "_server", "call_id", "peer")

    def __init__(self, server: Server, peer: bytes, call_id: int, *, owed: bool) -> None:
        """`owed`: whether there is an answer to give; to a notice there is none."""
        self._server = server
        self._owed = owed
        self.peer = peer
        self.call_id = call_id

    @property
    def origin(self) -> str:
        """The address of a tcp peer, empty of one on a Unix socket. For its handler, not later."""
        frame = self._server._serving
        address = "" if frame is None else str(frame.get("Peer-Address"))
        return "" if address.startswith(UNIX_PEER) else address

    def serve(self, handler: Handler, message: Message) -> None:
        """Answer a deferred call with what `handler(self, message)` returns or raises."""
        try:
            reply = Handlers.run(handler, self, message)
        except CallError as error:
            self.fail(error)
        else:
            if reply is not DEFERRED:
                self.answer(reply)

    def answer(self, reply: Any) -> None:
        """Answer a deferred call."""
        try:
            data = wire.frame(wire.REPLY, self.call_id, self._server.epoch, reply)
        except MemoryError:  # no answer, and no half of what it granted: the engine starts again
            raise
        except Exception as fault:  # it cannot be encoded; the caller is answered all the same
            log.exception("answer %.200r cannot be encoded", reply)
            self.fail(HandlerFailed(f"the answer cannot be encoded: {sentence_of(fault)}"))
            return
        self._send(data)

    def fail(self, error: CallError) -> None:
        """Answer a deferred call with an error."""
        self._server.counters.errors += self._owed
        self._send(wire.error_frame(self.call_id, self._server.epoch, error))

    def _send(self, data: bytes) -> None:
        if not self._owed:
            log.error("call %d is owed no answer: not given one", self.call_id, stack_info=True)
            return
        self._owed = False
        self._server._send(self, data)
