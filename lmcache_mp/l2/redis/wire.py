"""redis-py's connections, taught to move an object's bytes without a copy.

By itself the library copies a value twice on its way out and twice on its way in, the last time
holding the GIL. Here SET sends the parts as they lie (2 to 4 times as fast), and the reply to a GET
is received into them (1.1 to 1.7 times). Everything else is the library's own: `command_packer` and
`parser_class` are the places it has for that. Both are called by the thread that makes the call.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import hiredis  # noqa: F401  # redis-py does with or without; the parser below is built on it
from redis.connection import (
    Connection,
    DefaultParser,
    HiredisRespSerializer,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.exceptions import ConnectionError as Disconnected
from typing_extensions import Buffer

Parts = Sequence[memoryview]

_CRLF = 2  # bytes after a value
_HEAD_BYTES = 4096  # what is received at once before a value's length is known
_EXCESS_BYTES = 65536


class _Landing(threading.local):
    """Where this thread wants the value of the object it loads."""

    parts: Parts | None = None
    due = False
    """Whether the next reply on this thread is the one: the last command packed was the GET."""


_landing = _Landing()


@contextlib.contextmanager
def landing(parts: Parts) -> Generator[None, None, None]:
    """Inside, a GET receives into `parts` and returns the value's length instead of the value.

    None without a value. What does not fit is dropped.
    """
    _landing.parts = parts
    try:
        yield
    finally:
        _landing.parts, _landing.due = None, False


class _Packer:
    """`SET name parts option...` as buffers to send; all else as the library does it."""

    def __init__(self) -> None:
        self._plain = HiredisRespSerializer()

    def pack(self, *arguments: Any) -> list[Buffer]:
        """A command in RESP."""
        _landing.due = arguments[0] in ("GET", "GETEX")
        if arguments[0] != "SET":
            packed: list[Buffer] = self._plain.pack(*arguments)
            return packed
        _, name, parts, *options = arguments
        length = sum(map(len, parts))
        head = b"*%d\r\n$3\r\nSET\r\n%b$%d\r\n" % (3 + len(options), _bulk(name), length)
        return [head, *parts, b"\r\n" + b"".join(map(_bulk, options))]


class _Parser(DefaultParser):  # type: ignore[misc, valid-type]  # hiredis or not: a variable
    """Receives a value that is due into the parts that wait for it."""

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        """One reply."""
        if not _landing.due or _landing.parts is None:
            return super().read_response(*arguments, **options)
        _landing.due = False
        head = b""
        while b"\r\n" not in head:
            head += self._received(self._sock.recv(_HEAD_BYTES))
        line, _, rest = head.partition(b"\r\n")
        if not line.startswith(b"$") or line == b"$-1":
            self._reader.feed(head)
            return super().read_response(*arguments, **options)
        length = int(line[1:])
        self._land(length, memoryview(rest), _landing.parts)
        return length

    def _land(self, length: int, ready: memoryview, parts: Parts) -> None:
        """Fill parts, or a bin, with what is ready and what comes, to the end of the reply."""
        for target in _targets(length, parts):
            filled = min(len(target), len(ready))
            target[:filled] = ready[:filled]
            ready = ready[filled:]
            while filled < len(target):
                filled += self._received(self._sock.recv_into(target[filled:]))

    @staticmethod
    def _received(what: Any) -> Any:
        if not what:
            raise Disconnected("the server closed the connection")
        return what


def _targets(length: int, parts: Parts) -> Iterator[memoryview]:
    for part in parts:
        yield part[: min(length, len(part))]
        length -= min(length, len(part))
    length += _CRLF
    bin_ = memoryview(bytearray(min(length, _EXCESS_BYTES)))
    while length:
        yield bin_[: min(length, len(bin_))]
        length -= min(length, len(bin_))


def _ours() -> dict[str, Any]:
    return {"parser_class": _Parser, "command_packer": _Packer()}


def _bulk(word: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(word), word)


class Tcp(Connection):
    """A connection that packs and parses as above."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**(options | _ours()))  # type: ignore[no-untyped-call]


class Tls(SSLConnection):
    """The same with TLS."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**(options | _ours()))


class Unix(UnixDomainSocketConnection):
    """The same through a socket of this host."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**(options | _ours()))  # type: ignore[no-untyped-call]
