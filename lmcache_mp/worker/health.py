"""The circuit breaker: an adapter that keeps failing is left alone until a probe succeeds.

(After Nygard, Release It!, 2007.) The engine is told when it opens and closes, and asks nobody to
wait for an adapter that is left alone.
"""

from __future__ import annotations

import threading

from bus.limited_log import LimitedLog
from lmcache_mp.logging import init_logger

FAILURES = 5
"""In a row, of all threads together, before an adapter is left alone."""


class Health:
    """Shared by all threads of a worker."""

    def __init__(self) -> None:
        self.usable = threading.Event()
        """Threads take work only while this is set."""
        self.error = ""
        self.untried = True
        """Whether nobody knows yet if it can be used."""
        self.failed_tries = 0
        self.log = LimitedLog(init_logger(__name__))
        """For what happens object by object."""
        self._in_a_row = 0
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        """The adapter did what it was asked."""
        self._in_a_row = 0  # not worth a lock: it only delays

    def failed(self, fault: Exception) -> None:
        """The adapter raised."""
        with self._lock:
            self.failed_tries += 1
            self._in_a_row += 1
            if self._in_a_row >= FAILURES:
                self.leave_alone(fault)

    def leave_alone(self, fault: Exception) -> None:
        """Until `use`."""
        self.error = str(fault) or type(fault).__name__
        self.untried = False
        self.usable.clear()

    def use(self) -> None:
        """The adapter works (again)."""
        self.error = ""
        self.untried = False
        self._in_a_row = 0
        self.usable.set()
