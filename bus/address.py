"""Addresses of a bus: `ipc:///path/of/socket` and `tcp://host:port`."""

from __future__ import annotations

import ipaddress

import zmq

MAX_SOCKET_PATH_BYTES = 107  # sizeof(sun_path) - 1, unix(7)

KEEPALIVE = (
    (zmq.TCP_KEEPALIVE, 1),
    (zmq.TCP_KEEPALIVE_IDLE, 60),
    (zmq.TCP_KEEPALIVE_INTVL, 10),
    (zmq.TCP_KEEPALIVE_CNT, 6),
)
"""Options of both sides: a host that has vanished from the network is gone after two minutes."""


class BadAddress(ValueError):
    """An address that no bus can have, and why."""


def validate_address(address: str) -> str:
    """The address itself, if a socket can be bound or connected there; else `BadAddress`."""
    scheme, separator, rest = address.partition("://")
    if not separator or scheme not in ("ipc", "tcp"):
        raise BadAddress(
            f"bus address {address!r}: expected ipc:///path/of/socket or tcp://host:port"
        )
    if scheme == "ipc":
        try:
            length = len(rest.encode())
        except UnicodeEncodeError:
            raise BadAddress(f"bus address {address!r}: the path is not UTF-8") from None
        if not rest.startswith("/"):
            raise BadAddress(f"bus address {address!r}: the path must be absolute")
        if "\0" in rest:
            raise BadAddress(f"bus address {address!r}: the path has a NUL byte in it")
        if length > MAX_SOCKET_PATH_BYTES:
            raise BadAddress(
                f"socket path {rest!r} is {length} bytes long, a Unix socket's may have"
                f" {MAX_SOCKET_PATH_BYTES}: choose a shorter run directory"
            )
        return address
    host, _, port = rest.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise BadAddress(f"bus address {address!r}: expected tcp://host:port")
    return address


def is_loopback(address: str) -> bool:
    """Whether only processes of this host can reach the address."""
    if address.startswith("ipc://"):
        return True
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
