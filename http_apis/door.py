"""Who gets in: the rules of HTTP's access control, without any ASGI.

A browser is the reason for two of them. A page of any site may make it send requests to a server
that only its user can reach: to change something (hence `check_site`) or, if the site's name is
made to lead to this host, to read the answers too (DNS rebinding, hence `check_host`).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from http_apis.bearer import Bearer

_HOST = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<name>[^\[\]:@/?#\\\s]+))(?::[0-9]{0,5})?")


class Refused(HTTPException):
    """The request is not let in; the sentence says why and what to do."""


class Door:
    """The rules, for one listening socket."""

    def __init__(self, listens_on: str, names: Iterable[str], bearer: Bearer | None) -> None:
        self.bearer = bearer
        self.is_local = is_loopback(listens_on)
        self._names = frozenset(map(_plain, ("localhost", *_names_of_this_host(), *names)))

    def check_host(self, headers: Headers) -> None:
        """Who is asked must be this server: by address, or by a name that is known to be its."""
        hosts = headers.getlist("host")
        if len(hosts) != 1:
            raise Refused(400, f"the request has {len(hosts)} Host headers, it must have one")
        name = host_of(hosts[0])
        if name is None:
            raise Refused(400, f"Host {hosts[0][:100]!r} is no host")
        if name and name not in self._names:
            raise Refused(
                421,
                f"Host {hosts[0][:100]!r} is no name of this server: ask for its address, or make"
                " the name known with --http-allowed-host",
            )

    def admit_change(self, connection: HTTPConnection, *, never_open: bool = False) -> None:
        """Let in who may change something, else raise `Refused`."""
        self.check_site(connection)
        self.check_token(connection.headers, never_open=never_open)

    def check_site(self, connection: HTTPConnection) -> None:
        """No page of another site: browsers say where a request comes from, others say nothing."""
        headers = connection.headers
        site = headers.get("sec-fetch-site", "none")
        if site not in ("none", "same-origin"):
            raise Refused(403, f"a page of another site asks (Sec-Fetch-Site: {site[:100]})")
        scheme = {"ws": "http", "wss": "https"}.get(connection.scope["scheme"])
        own = f"{scheme or connection.scope['scheme']}://{headers['host']}"
        for origin in headers.getlist("origin"):
            if origin.lower() != own.lower():
                raise Refused(403, f"a page of {origin[:100]} asks, and this is {own[:100]}")

    def check_token(self, headers: Headers, *, never_open: bool = False) -> None:
        """The token, where one is needed."""
        if self.bearer is None:
            if never_open:
                why = "this is never open to everybody"
            elif not self.is_local:
                why = "this changes something, and HTTP listens beyond the loopback interface"
            else:
                return
            raise Refused(403, f"{why}: start the server with --http-token-file")
        if not self.bearer.is_usable:
            raise Refused(
                503, "the token file cannot be used: the log of the http process says why"
            )
        given = headers.getlist("authorization")
        if len(given) != 1 or not self.bearer.admits(given[0].encode("latin-1")):
            why = "another token" if given else "no token"
            raise Refused(
                401,
                f"the request has {why}: send `Authorization: Bearer TOKEN` with the token of"
                " --http-token-file",
                {"WWW-Authenticate": "Bearer"},
            )


def require_change_right(request: HTTPConnection) -> None:
    """For a route that changes something or not as its parameters say: to be called when it does.

    Raises `Refused`, which the route lets pass.
    """
    door: Door = request.app.state.door
    door.admit_change(request)


def is_loopback(address: str) -> bool:
    """Whether only this host can reach a socket that listens on an address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


@lru_cache(maxsize=64)
def host_of(header: str) -> str | None:
    """The name in a Host header, empty if it is an address; None if it is neither."""
    match = _HOST.fullmatch(header)
    if match is None:
        return None
    try:
        ipaddress.ip_address(match["v6"] or match["name"])
    except ValueError:
        return _plain(match["name"]) if match["name"] else None
    return ""


def _plain(name: str) -> str:
    return name.lower().removesuffix(".")


def _names_of_this_host() -> tuple[str, str]:
    name = socket.gethostname()
    return name, name.partition(".")[0]
