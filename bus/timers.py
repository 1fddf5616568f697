"""What a server does by the clock, between two messages."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Timer:
    every_s: float
    due_s: float
    callback: Callable[[float], None]


class Timers:
    """Callbacks with a period each."""

    def __init__(self) -> None:
        self._timers: list[_Timer] = []
        self.due_s = float("inf")
        """When the next one is due."""

    def every(self, seconds: float, callback: Callable[[float], None]) -> None:
        """Call `callback(now_s)` about every so many seconds."""
        self._timers.append(_Timer(seconds, time.monotonic() + seconds, callback))
        self.due_s = min(self.due_s, self._timers[-1].due_s)

    def run_due(self, now_s: float) -> None:
        """Call what is due."""
        if now_s < self.due_s:
            return
        for timer in self._timers:
            if now_s >= timer.due_s:
                timer.due_s = now_s + timer.every_s
                try:
                    timer.callback(now_s)
                except MemoryError:  # it may be half done
                    raise
                except Exception:  # a timer's fault must not end the service of everybody
                    log.exception("timer %s failed", timer.callback)
        self.due_s = min(timer.due_s for timer in self._timers)
