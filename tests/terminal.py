"""A terminal of its own for a command, and what stands on it."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence

from tests.waiting import wait_until


class Terminal:
    """A process whose stdin, stdout and stderr are one pseudo-terminal."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment
        )
        os.close(slave)
        self._seen = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def text(self) -> str:
        """All that was written so far."""
        return bytes(self._seen).decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def shows(self, text: str) -> None:
        """Wait until it was written."""
        wait_until(lambda: text in self.text or self._ended())
        assert text in self.text, self.text

    def interrupt(self) -> int:
        """Ctrl-C, and the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=10)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._master)

    def _ended(self) -> bool:
        return not self._reader.is_alive()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # nobody has the other end any more
            while data := os.read(self._master, 65536):
                self._seen += data


@contextlib.contextmanager
def terminal(command: Sequence[str], **environment: str) -> Iterator[Terminal]:
    """Run `command` in a terminal that knows no colours unless told otherwise."""
    shown = Terminal(command, {"TERM": "dumb", "PATH": os.environ["PATH"], **environment})
    with contextlib.closing(shown):
        yield shown
