"""What a person sees while a command takes its time."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def patience(what: str) -> Iterator[None]:
    """Say on stderr, if it is a terminal, what is being waited for, as long as that takes."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console  # 0.1 s that a pipe need not wait

    with Console(stderr=True).status(what):
        yield
