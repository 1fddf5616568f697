"""Connections that came to nothing, counted and logged by what libzmq tells of its sockets.

A monitor tells of a failed handshake, but says nothing of peers whose first bytes are of no ZMTP 3:
those are what was accepted, has neither succeeded nor failed, and is too old to be shaking hands.
"""

from __future__ import annotations

import logging
import struct
from typing import Any

import zmq

from bus.limited_log import LimitedLog

HANDSHAKE_S = 5.0
"""How long a peer may take; libzmq ends the connection then."""

MONITOR_ADDRESS = "inproc://monitor"
EVENTS_A_LOOK = 100
"""Taken at a time: the loop must not be away for longer than some milliseconds."""

_EVENT = struct.Struct("=Hi")  # zmq_socket_monitor(3)
_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | _FAILED

_REASONS = {
    int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH): "one side wants keys and the other has none",
    int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC): "it takes this server for one with another key",
}


class Handshakes:
    """Watches the handshakes of one socket. Its methods are the server's thread's."""

    def __init__(
        self, context: zmq.Context[Any], router: zmq.Socket[bytes], log: LimitedLog
    ) -> None:
        self._log = log
        self._router = router
        self._failed = 0
        self._silent = 0
        self._unsettled = 0
        """Accepted, and neither succeeded nor failed: shaking hands, or dropped in silence."""
        self._young: dict[int, float] = {}
        """Descriptors of open connections, oldest first, until they are too old to be unsettled."""
        router.setsockopt(zmq.HANDSHAKE_IVL, int(HANDSHAKE_S * 1000))
        router.monitor(MONITOR_ADDRESS, int(_EVENTS))
        self._events: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        self._events.setsockopt(zmq.RCVHWM, 0)  # a full queue would block libzmq's I/O thread
        self._events.connect(MONITOR_ADDRESS)

    @property
    def refused(self) -> int:
        """Connections that were accepted and never became a peer's."""
        return self._failed + self._silent

    def look(self, now_s: float) -> None:
        """Take in what has happened since the last look."""
        for _ in range(EVENTS_A_LOOK):
            try:
                data, endpoint = self._events.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            event, value = _EVENT.unpack(data)
            self._note(event, value, endpoint.decode(errors="replace"), now_s)
        else:
            return  # there is more: what follows holds at the end of it
        while self._young and now_s - next(iter(self._young.values())) > 2 * HANDSHAKE_S:
            del self._young[next(iter(self._young))]
        silent = self._unsettled - len(self._young)
        if silent > self._silent:
            self._log.say(
                now_s,
                logging.WARNING,
                "refused connections=%d: their first bytes are not of ZMTP 3",
                silent - self._silent,
            )
            self._silent = silent

    def close(self) -> None:
        """Close the monitor; before the socket it watches."""
        self._router.disable_monitor()
        self._events.close(linger=0)

    def _note(self, event: int, value: int, endpoint: str, now_s: float) -> None:
        if event == zmq.EVENT_ACCEPTED:
            self._unsettled += 1
            self._young[value] = now_s
        elif event == zmq.EVENT_DISCONNECTED:
            self._young.pop(value, None)
        else:
            self._unsettled -= 1
            if event & _FAILED:
                self._failed += 1
                self._tell(event, value, endpoint, now_s)

    def _tell(self, event: int, value: int, endpoint: str, now_s: float) -> None:
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            why = _REASONS.get(value, f"broken handshake ({value:#x})")
        elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:  # where keys are required: it has none
            why = f"it did not finish its handshake ({zmq.strerror(value)})"
        else:
            return  # FAILED_AUTH: the doorkeeper tells, who knows the key
        self._log.say(now_s, logging.WARNING, "refused a peer at %s: %s", endpoint, why)
