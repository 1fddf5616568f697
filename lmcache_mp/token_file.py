"""The file that holds the token of HTTP: read by the supervisor, which refuses to start with a bad
one, and by the http process, which uses it.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field

MIN_CHARACTERS, MAX_CHARACTERS = 16, 4096
_HEADER_SAFE = re.compile(rb"[!-~]*")


class TokenFileError(Exception):
    """The token file cannot be used; the sentence says why and what to do, never what is in it."""


@dataclass(frozen=True, slots=True)
class TokenFile:
    """What a token file held when it was read."""

    token: bytes = field(repr=False)
    version: tuple[int, ...]
    """Another one than `version_of` its path: it was changed since."""


def read(path: str) -> TokenFile:
    """The one line of a file that only this user may read; raises `TokenFileError`."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            found = os.fstat(file.fileno())
            _check_access(path, found)
            content = file.read(MAX_CHARACTERS + 2)
    except OSError as fault:
        raise _fault(path, f"cannot be read: {fault.strerror}") from None
    return TokenFile(_only_line(path, content), _version(found))


def version_of(path: str) -> tuple[int, ...]:
    """Changes with the file's content, mode or place; empty if it cannot be seen."""
    try:
        return _version(os.stat(path))
    except OSError:
        return ()


def _without_waiting(path: str, flags: int) -> int:
    """A FIFO is refused, and must not be waited for before that."""
    return os.open(path, flags | os.O_NONBLOCK)


def _check_access(path: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _fault(path, "is no regular file: name one that holds a token")
    if found.st_mode & 0o077:
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        raise _fault(path, f"has mode {mode}, others may use it: chmod 0600 {path}")


def _only_line(path: str, content: bytes) -> bytes:
    token = content.strip()
    if not token:
        raise _fault(path, f"is empty: openssl rand -hex 32 > {path}")
    if len(token) < MIN_CHARACTERS:
        why = f"holds {len(token)} characters, a token has at least {MIN_CHARACTERS}"
        raise _fault(path, f"{why}: openssl rand -hex 32 > {path}")
    if len(content) > MAX_CHARACTERS:
        raise _fault(path, f"holds more than {MAX_CHARACTERS} characters: it is no token")
    if b"\n" in token:
        raise _fault(path, "holds more than one line: a token is one line")
    if not _HEADER_SAFE.fullmatch(token):
        raise _fault(path, "holds a character that a token cannot have: visible ASCII, no spaces")
    return token


def _fault(path: str, sentence: str) -> TokenFileError:
    return TokenFileError(f"--http-token-file {path} {sentence}")


def _version(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
