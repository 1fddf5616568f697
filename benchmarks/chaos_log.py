"""What the processes of a chaos run tell the one that conducts it: JSON lines on a pipe.

A line is written whole before the next step is taken, so a killed process leaves the truth up to
its last line. Times are CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from benchmarks.chaos_plan import Kind


class Started(msgspec.Struct, frozen=True, tag=True):
    """The process is ready to work."""


class Committed(msgspec.Struct, frozen=True, tag=True):
    """A commit that was answered: all of these chunks were taken."""

    shard: int
    keys: bytes
    asked_s: float
    answered_s: float


class Missed(msgspec.Struct, frozen=True, tag=True):
    """The answer to a retrieve: this chunk is not there."""

    place: int
    key: bytes
    asked_s: float
    answered_s: float
    pinned_s: float | None = None
    """Since when this process has held a pin on it, if it does."""


class Deleting(msgspec.Struct, frozen=True, tag=True):
    """These chunks are going to be deleted; from now on they may be gone."""

    keys: bytes
    asked_s: float


class Deleted(msgspec.Struct, frozen=True, tag=True):
    """What `Deleting` announced has been answered; or, if not, may happen for a while yet."""

    answered_s: float
    failed: bool


class Wrong(msgspec.Struct, frozen=True, tag=True):
    """Bytes that were served and are not the chunk's."""

    place: int
    key: bytes
    wrong_bytes: int
    during: str


class Silence(msgspec.Struct, frozen=True, tag=True):
    """From the first call that got no answer until the next one that did."""

    from_s: float
    to_s: float


class Dying(msgspec.Struct, frozen=True, tag=True):
    """Last words: it kills itself now, and these chunks are reserved."""

    how: Kind
    at_s: float
    place: int = 0
    keys: bytes = b""


class Tally(msgspec.Struct, tag=True):
    """How much was done so far."""

    requests: int = 0
    verified_bytes: int = 0
    stored_chunks: int = 0
    failed_open: int = 0
    longest_call_s: float = 0.0
    last_failure: str = ""


Line = Started | Committed | Missed | Deleting | Deleted | Wrong | Silence | Dying | Tally
Say = Callable[[Line], None]
decode_line = msgspec.json.Decoder(Line).decode


def say_on(descriptor: int) -> Say:
    """Say lines there, each in one write."""

    def say(line: Line) -> None:
        os.write(descriptor, msgspec.json.encode(line) + b"\n")

    return say
