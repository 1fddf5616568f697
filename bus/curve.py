"""CURVE: what encrypts a tcp connection, and the doorkeeper who says which keys may connect.

CURVE alone admits every key. libzmq therefore asks about each new connection, as ZAP has it
(rfc.zeromq.org/spec/27), whoever is bound to one address within the server's own context.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import zmq
from zmq.utils import z85

log = logging.getLogger(__name__)

ZAP_ADDRESS = "inproc://zeromq.zap.01"
OPEN_DOMAIN, CURVE_DOMAIN = b"open", b"curve"
"""ZAP domains: of the addresses that need no key, and of those that do."""

KEY_BYTES = 32
KEPT_REFUSALS = 1000


@dataclass(frozen=True, slots=True)
class ClientCurve:
    """What a client needs for an address with CURVE. Keys are in Z85, 40 bytes each."""

    public_key: bytes
    secret_key: bytes = field(repr=False)
    server_key: bytes
    """The server's public key."""

    def options(self) -> tuple[tuple[int, bytes], ...]:
        """Of its socket."""
        return (
            (zmq.CURVE_PUBLICKEY, self.public_key),
            (zmq.CURVE_SECRETKEY, self.secret_key),
            (zmq.CURVE_SERVERKEY, self.server_key),
        )


@dataclass(frozen=True, slots=True)
class ServerCurve:
    """What a server needs for an address with CURVE."""

    secret_key: bytes = field(repr=False)
    admits: Callable[[bytes], bool]
    """Whether the client with that public key may connect: both in Z85. Called by the doorkeeper's
    thread; who makes it raise is refused."""


class Doorkeeper:
    """Answers libzmq about each new connection to any address of one context.

    A daemon thread, so that the server's loop can wait in its one `recv`. It ends with the context.
    """

    def __init__(self, context: zmq.Context[Any], curve: ServerCurve) -> None:
        self.refused: deque[str] = deque(maxlen=KEPT_REFUSALS)
        """Who was refused, for the server's thread to take and log."""
        self._admits = curve.admits
        self._socket: zmq.Socket[bytes] = context.socket(zmq.REP)
        self._socket.bind(ZAP_ADDRESS)
        self._thread = threading.Thread(target=self._run, name="bus doorkeeper", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for its end, which comes when the context is terminated."""
        self._thread.join()

    def _run(self) -> None:
        try:
            with contextlib.suppress(zmq.ContextTerminated):
                while True:
                    self._socket.send_multipart(self._answer(self._socket.recv_multipart()))
        finally:
            self._socket.close(linger=0)  # or the context would never end

    def _answer(self, request: list[bytes]) -> list[bytes]:
        """`[version, request id, status, reason, user id, metadata]`, whatever was asked."""
        request_id = b"".join(request[1:2])
        try:
            why = self._why_refused(request)
        except Exception as fault:  # no list, no entry; and the next one must find a doorkeeper
            log.exception("whether a peer may connect could not be found out")
            why = f"it could not be found out whether it may connect: {fault}"
        if not why:
            return [b"1.0", request_id, b"200", b"", b"", b""]
        self.refused.append(why)
        return [b"1.0", request_id, b"400", b"", b"", b""]

    def _why_refused(self, request: list[bytes]) -> str:
        match request:
            case [b"1.0", _, domain, _, _, b"NULL"] if domain == OPEN_DOMAIN:
                return ""
            case [b"1.0", _, domain, address, _, b"CURVE", key] if (
                domain == CURVE_DOMAIN and len(key) == KEY_BYTES
            ):
                public_key = z85.encode(key)
                if self._admits(public_key):
                    return ""
                return f"{_readable(address)}: the key {_readable(public_key)} is not on the list"
            case [_, _, domain, address, _, mechanism, *_]:
                return f"{_readable(address)}: {_readable(mechanism)} where {_readable(domain)} is"
            case _:
                return f"a question of {len(request)} parts"


def _readable(text: bytes) -> str:
    return text.decode("ascii", "backslashreplace")
