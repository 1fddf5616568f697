"""A peer whose message never ends: libzmq keeps all parts of it until the last has come."""

from __future__ import annotations

import contextlib
import socket

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48)
_SOCKET_TYPE = b"\x0bSocket-Type\x00\x00\x00\x06DEALER"
_READY = b"\x05READY" + _SOCKET_TYPE
READY = bytes([0x04, len(_READY)]) + _READY
LARGE_PART = b"\x03" + (512 << 10).to_bytes(8, "big") + bytes(512 << 10)
"""A long frame with more to come (ZMTP 3.1, section 3.2): libzmq allocates each, and drops the
connection where that fails."""

SMALL_PART = b"\x01\x01x"
"""A short one: libzmq keeps it in its queue, and aborts where that cannot grow."""


def send_endless_message(path: str, part: bytes, limit_bytes: int) -> int:
    """Send parts of one message until the other end has had enough; returns how many bytes."""
    parts = part * max(1, (64 << 10) // len(part))
    sent = 0
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(10)
        raw.connect(path)
        raw.sendall(GREETING + READY)
        said = b""
        while b"READY" not in said:  # before that, what follows would break the handshake
            said += raw.recv(4096)
        while sent < limit_bytes:
            raw.sendall(parts)
            sent += len(parts)
    return sent
