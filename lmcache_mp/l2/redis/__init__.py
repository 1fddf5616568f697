"""`redis`: Redis or Valkey, one server or a cluster, which many nodes may share.

An object is one string under the prefix and the hex of its key, so that SET makes it whole or not
at all. The library is the extra `[redis]`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import Annotated

from msgspec import Meta
from typing_extensions import override

from lmcache_mp import l2

KEY_BYTES = 32
_SCAN_COUNT = 1000


class Config(l2.AdapterConfig, frozen=True, kw_only=True):
    """Where, as whom, and for how long."""

    url: Annotated[str, Meta(pattern=r"^(rediss?|unix)://")]
    """redis://[user:password@]host:port/db, rediss:// with TLS, unix:///path?db=0"""
    password_file: str | None = None
    """File with the password. Unset: the one in the URL, or else in $REDISCLI_AUTH."""
    cluster: bool | None = None
    """Whether it is a cluster. Unset: as the server says."""
    ca_file: str | None = None
    """Certificates to trust, PEM. Unset: the system's."""
    cert_file: str | None = None
    key_file: str | None = None
    """What to show a server that asks its clients for certificates, PEM."""
    prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:/-]{1,100}\Z")] = "lmcache-mp:"
    """Of all keys: several deployments may share one server."""
    ttl_s: Annotated[int, Meta(ge=1, le=1 << 31)] | None = None
    """How long objects stay after their last use. Unset: until the server evicts them."""
    timeout_s: Annotated[float, Meta(gt=0, le=600)] = 5.0
    """For connecting, and for every wait for the server to go on."""


class Adapter(l2.Adapter[Config]):
    """See the module."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        try:
            from lmcache_mp.l2.redis import connect, faults, wire
        except ImportError as fault:
            raise l2.AdapterError(
                f"its library is missing ({fault}): pip install 'lmcache-mp[redis]'", lasting=True
            ) from None
        self._faults, self._landing = faults, wire.landing
        self._target = connect.Target(config)
        self._prefix = config.prefix.encode()
        expiry = () if config.ttl_s is None else (b"EX", b"%d" % config.ttl_s)
        self._set_options = expiry
        self._get: tuple[str, tuple[bytes, ...]] = ("GETEX" if expiry else "GET", expiry)
        try:
            with self._explained():
                self._client = self._target.client()
            self.lookup([bytes(KEY_BYTES)])
        except BaseException:
            self.close()
            raise

    @override
    def lookup(self, keys: Sequence[bytes]) -> Sequence[bool]:
        with self._explained(), self._client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.exists(self._name(key))
            return [bool(found) for found in pipeline.execute()]

    @override
    def store(self, key: bytes, parts: Sequence[memoryview]) -> None:
        with self._explained():
            self._client.execute_command("SET", self._name(key), parts, *self._set_options)

    @override
    def load(self, key: bytes, parts: Sequence[memoryview]) -> int | None:
        verb, options = self._get
        with self._explained(), self._landing(parts):
            try:
                length: int | None = self._client.execute_command(verb, self._name(key), *options)
            except self._faults.Refused as fault:
                if not str(fault).startswith("WRONGTYPE"):
                    raise
                return 0  # no string, so nothing of ours: as long as no object is
        return length

    @override
    def delete(self, keys: Sequence[bytes]) -> None:
        with self._explained(), self._client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.unlink(self._name(key))
            pipeline.execute()

    @override
    def scan(self) -> Iterator[bytes]:
        with self._explained():
            for name in self._client.scan_iter(match=self._prefix + b"*", count=_SCAN_COUNT):
                with contextlib.suppress(ValueError):  # somebody else's
                    key = bytes.fromhex(name[len(self._prefix) :].decode())
                    if len(key) == KEY_BYTES:
                        yield key

    @override
    def close(self) -> None:
        self._target.close()

    def _name(self, key: bytes) -> bytes:
        return self._prefix + key.hex().encode()

    @contextlib.contextmanager
    def _explained(self) -> Generator[None, None, None]:
        try:
            yield
        except self._faults.FAULTS as fault:
            self._target.tidy(fault)
            raise self._faults.explained(fault, str(self._target)) from fault
