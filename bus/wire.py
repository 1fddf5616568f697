"""The wire format: one frame, a 24-byte header before a msgpack body. No I/O here.

    [0:2) magic  [2] version  [3] kind  [4:8) zero  [8:16) call id  [16:24) epoch     little-endian

The header's layout is the same in every version, so that a peer of another one can be told so.
"""

from __future__ import annotations

import enum
import struct
from typing import Any

import msgspec

from bus.errors import CallError
from bus.schema import ErrorReply

MAGIC = b"KV"
PROTOCOL_VERSION = 1
MAX_MESSAGE_BYTES = 1 << 20
"""Default bound of a frame: the keys of an 8-million-token prompt in 256-token chunks."""

HEADER = struct.Struct("<2sBBIQQ")
NO_EPOCH = 0
"""The epoch of a request that does not depend on what an earlier answer said."""

encode = msgspec.msgpack.Encoder().encode


class Kind(enum.IntEnum):
    """What a frame is."""

    REQUEST = 1
    NOTICE = 2
    REPLY = 3
    ERROR = 4


REQUEST, NOTICE, REPLY, ERROR = (
    int(kind) for kind in Kind
)  # an enum lookup costs more than a call


class NotWellFramed(Exception):
    """The frame is not of this protocol; there is nobody to answer."""


def frame(kind: int, call_id: int, epoch: int, body: Any) -> bytes:
    """A whole frame for a message, a reply or an `ErrorReply`."""
    return HEADER.pack(MAGIC, PROTOCOL_VERSION, kind, 0, call_id, epoch) + encode(body)


def error_frame(call_id: int, epoch: int, error: CallError) -> bytes:
    """The frame that answers a call with an error, whatever its sentence and values are.

    A sentence may quote a path that is no UTF-8, a value may be too large: those cannot be written.
    """
    code = type(error).code
    try:
        return frame(ERROR, call_id, epoch, ErrorReply(code, error.message, error.values))
    except (UnicodeEncodeError, OverflowError, TypeError):
        readable = error.message.encode("utf-8", "backslashreplace").decode()
        return frame(ERROR, call_id, epoch, ErrorReply(code, readable, {}))


def parse(data: bytes) -> tuple[int, int, int, int]:
    """`(version, kind, call_id, epoch)` of a frame; its body starts at `HEADER.size`.

    Raises `NotWellFramed` for anything else, whatever the bytes are.
    """
    if len(data) < HEADER.size:
        raise NotWellFramed(f"{len(data)} bytes are fewer than a header's {HEADER.size}")
    magic, version, kind, zero, call_id, epoch = HEADER.unpack_from(data)
    if magic != MAGIC or zero:
        raise NotWellFramed(f"starts with {data[:8]!r} instead of {MAGIC!r}")
    return version, kind, call_id, epoch


_decode_error = msgspec.msgpack.Decoder(ErrorReply).decode


def decode_error(data: bytes) -> CallError:
    """The exception that an error frame carries."""
    reply = _decode_error(memoryview(data)[HEADER.size :])
    return CallError.of(reply.code, reply.message, reply.values)
