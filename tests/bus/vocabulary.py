"""What the tests of the bus say to each other."""

from __future__ import annotations

import msgspec

from bus import CallError, Done, Message, Notice, Request


class Text(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Answer to everything that carries a text."""

    text: str


class Echo(Request[Text], frozen=True):
    """Answered with the same text, at once."""

    text: str


class Raise(Request[Text], frozen=True):
    """Answered by raising `service.FAULTS[fault]`."""

    fault: str


class Inflate(Request[bytes], frozen=True):
    """Answered with that many bytes."""

    answer_bytes: int


class Keep(Request[Text], frozen=True):
    """Kept open until an `AnswerKept` says so."""

    text: str


class AnswerKept(Request[Done], frozen=True):
    """Answers what is kept with its own text, in the order of `positions`; then forgets it all."""

    positions: tuple[int, ...]


class Stall(Request[Done], frozen=True):
    """Holds the server's loop until the test opens the gate."""


class Tell(Notice, frozen=True):
    """Noted by the server; "raise" and "refuse" make its handler raise."""

    text: str


class Refused(CallError):
    """A domain's own error, with numbers."""

    code = "tests_refused"


ALL: tuple[type[Message], ...] = (Echo, Raise, Inflate, Keep, AnswerKept, Stall, Tell)
