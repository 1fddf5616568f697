"""Signals as something to wait for: the supervisor's loop has no other source of wake-ups."""

from __future__ import annotations

import contextlib
import select
import signal
import socket

STOP = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


class Signals:
    """Collects SIGCHLD and the signals that mean stop. Make it in the main thread, one at a time.

    A signal that came before `wait` ends it at once: none is lost between two waits.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._reader, select.POLLIN)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (*STOP, signal.SIGCHLD):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            signal.signal(number, lambda *_: None)

    def wait(self, timeout_s: float) -> int:
        """Sleep until a signal or the time-out; returns how many of those were a wish to stop."""
        self._poll.poll(max(0.0, timeout_s) * 1000)
        with contextlib.suppress(BlockingIOError):
            return sum(number in STOP for number in self._reader.recv(4096))
        return 0

    def close(self) -> None:
        """Signals are no longer collected; those that mean stop are ignored, as it is over."""
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()
