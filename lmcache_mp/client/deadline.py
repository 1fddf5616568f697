"""One deadline for all that a verb does: connecting, saying hello, asking, asking again."""

from __future__ import annotations

import time

from bus import DeadlineExceeded


class Deadline:
    """A moment that a call must not outlast."""

    __slots__ = ("_end_s", "timeout_s")

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._end_s = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Seconds that are left; raises `DeadlineExceeded` if there are none."""
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded(f"the cache was not reached within {self.timeout_s:g} s")
        return left_s
