"""The tests' service in a process of its own, to be killed."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def serving_process(address: str) -> Iterator[subprocess.Popen[str]]:
    """A service that listens at `address`; killed on leaving if the test has not done so."""
    command = [sys.executable, "-m", "tests.bus.service", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()
            process.wait()


def run_script(name: str, *arguments: str) -> None:
    """Run `tests.bus.<name>` as a process, which must end well and in time."""
    subprocess.run([sys.executable, "-m", f"tests.bus.{name}", *arguments], check=True, timeout=30)
