"""How a command says that it could not do what it was asked."""

from __future__ import annotations


class Failure(Exception):
    """A sentence for stderr, and the exit code."""

    def __init__(self, sentence: str, exit_code: int = 1) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code
