"""The token of HTTP, as the file says now: changing the file needs no restart."""

from __future__ import annotations

import hmac

from lmcache_mp import token_file
from lmcache_mp.logging import init_logger

log = init_logger(__name__)


class Bearer:
    """Follows a token file. While it cannot be used no token is right, and the log says why."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._token: bytes | None = None
        self._version: tuple[int, ...] | None = None
        self._said = ""  # the last failure in the log, so that a lasting one is told once
        self._follow()

    @property
    def is_usable(self) -> bool:
        """Whether there is a token at all."""
        self._follow()
        return self._token is not None

    def admits(self, authorization: bytes) -> bool:
        """Whether an Authorization header carries the token, compared in constant time."""
        self._follow()
        scheme, _, given = authorization.partition(b" ")
        is_bearer = scheme.lower() == b"bearer"
        given = given.strip()
        return is_bearer and self._token is not None and hmac.compare_digest(given, self._token)

    def _follow(self) -> None:
        if token_file.version_of(self._path) == self._version:
            return
        try:
            found = token_file.read(self._path)
        except token_file.TokenFileError as fault:
            self._token = self._version = None  # read it again at the next request
            if str(fault) != self._said:
                log.error("http changes are closed: %s", fault)
            self._said = str(fault)
        else:
            self._token, self._version, self._said = found.token, found.version, ""
            log.info("http token read path=%s", self._path)
