"""Who comes in, address by address, and who did not: the mechanisms, the doorkeeper, the log."""

from __future__ import annotations

import logging
from typing import Any

import zmq

from bus.curve import CURVE_DOMAIN, OPEN_DOMAIN, Doorkeeper, ServerCurve
from bus.handshakes import Handshakes
from bus.limited_log import LimitedLog


class Gate:
    """What stands before a server's ROUTER. Its methods are the server's thread's."""

    def __init__(
        self, context: zmq.Context[Any], router: zmq.Socket[bytes], log: LimitedLog
    ) -> None:
        self._context = context
        self._router = router
        self._log = log
        self._handshakes = Handshakes(context, router, log)
        self._doorkeeper: Doorkeeper | None = None

    @property
    def refused(self) -> int:
        """Connections that never became a peer's."""
        return self._handshakes.refused

    def set_for_next_address(self, curve: ServerCurve | None) -> None:
        """What the next address speaks: libzmq gives it a copy of the options of this moment.

        A ZAP domain also refuses peers of ZMTP 1 and 2, that is any raw bytes: their messages do
        not say which connection they came by.
        """
        self._router.setsockopt(zmq.ZAP_DOMAIN, OPEN_DOMAIN if curve is None else CURVE_DOMAIN)
        self._router.setsockopt(zmq.CURVE_SERVER, curve is not None)
        self._router.setsockopt(
            zmq.ZAP_ENFORCE_DOMAIN, curve is not None
        )  # no doorkeeper, no entry
        if curve is not None:
            self._router.setsockopt(zmq.CURVE_SECRETKEY, curve.secret_key)
            if self._doorkeeper is None:
                self._doorkeeper = Doorkeeper(self._context, curve)

    def look(self, now_s: float) -> None:
        """Count and log who was refused since the last look."""
        self._handshakes.look(now_s)
        while self._doorkeeper is not None and self._doorkeeper.refused:
            who = self._doorkeeper.refused.popleft()
            self._log.say(now_s, logging.WARNING, "refused a peer: %s", who)
        self._log.look(now_s)

    def close(self) -> None:
        """Close the ROUTER and end the context; the doorkeeper ends with it."""
        self._handshakes.close()
        self._router.close(linger=0)
        self._context.term()
        if self._doorkeeper is not None:
            self._doorkeeper.join()
