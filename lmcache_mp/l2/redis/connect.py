"""From settings to a client of redis-py: who, where, how secret."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool, parse_url
from redis.retry import Retry
from typing_extensions import override

from lmcache_mp.l2 import AdapterError
from lmcache_mp.l2.redis.wire import Tcp, Tls, Unix

if TYPE_CHECKING:
    from lmcache_mp.l2.redis import Config

PASSWORD_VARIABLE = "REDISCLI_AUTH"  # noqa: S105  # a name; redis-cli reads it too
_IN_URL = {"host", "port", "path", "db", "username", "password", "connection_class"}
_MAX_CONNECTIONS = 1024  # per server; each thread of the worker uses one at a time

Client = Any  # redis.Redis or redis.RedisCluster, whose annotations have nothing in common


class Target:
    """What a `Config` names. Its `str` is for people, without secrets."""

    def __init__(self, config: Config) -> None:
        """Raises `AdapterError` if it names nothing that can be connected to."""
        self._config = config
        self._url = _parsed(config.url)
        self._tls = config.url.startswith("rediss:")
        self._pools: weakref.WeakSet[ConnectionPool] = weakref.WeakSet()

    @override
    def __str__(self) -> str:
        if "path" in self._url:
            return f"redis at {self._url['path']}"
        return f"redis at {self._host}:{self._port}"

    @property
    def _host(self) -> str:
        return str(self._url.get("host", "localhost"))

    @property
    def _port(self) -> int:
        return int(self._url.get("port", 6379))

    def client(self) -> Client:
        """A client of the server, or of the cluster that it is part of."""
        client = self._standalone()
        return self._cluster() if self._is_cluster(client) else client

    def close(self) -> None:
        """End the connections of all clients; those of a cluster forget some."""
        for pool in tuple(self._pools):
            pool.disconnect()

    def tidy(self, fault: Exception) -> None:
        """After a failover a server may have become a replica: connect anew, to where it leads."""
        if isinstance(fault, redis.ReadOnlyError):
            for pool in tuple(self._pools):
                pool.disconnect(inuse_connections=False)

    def _is_cluster(self, client: Client) -> bool:
        if self._config.cluster is not None:
            return self._config.cluster
        try:
            said = client.execute_command("HELLO")
        except redis.ResponseError:  # older than 6, or something that forwards a few commands
            return False
        return b"cluster" in said

    def _standalone(self) -> Client:
        place: dict[str, Any] = {key: self._url[key] for key in ("path", "db") if key in self._url}
        if "path" not in place:
            place |= {"host": self._host, "port": self._port}
        pool = self._pool(**place, **self._options(), retry=_no_retry())
        return redis.Redis(connection_pool=pool)

    def _cluster(self) -> Client:
        if "path" in self._url or self._url.get("db"):
            raise AdapterError(
                f"{self}: a cluster has TCP addresses and database 0 only", lasting=True
            )
        host = f"[{self._host}]" if ":" in self._host else quote(self._host)
        return redis.RedisCluster(
            url=f"redis://{host}:{self._port}",
            connection_pool_class=self._pool,
            require_full_coverage=False,
            retry=_no_retry(),
            **self._options(),
        )

    def _pool(self, **options: Any) -> ConnectionPool:
        pool = ConnectionPool(**options)
        self._pools.add(pool)
        return pool

    def _options(self) -> dict[str, Any]:
        return {
            "connection_class": Unix if "path" in self._url else Tls if self._tls else Tcp,
            "username": self._url.get("username"),
            "password": self._password(),
            "socket_timeout": self._config.timeout_s,
            "socket_connect_timeout": self._config.timeout_s,
            "max_connections": _MAX_CONNECTIONS,
            "protocol": 2,
            **self._certificates(),
        }

    def _password(self) -> str | None:
        in_url = self._url.get("password")
        path = self._config.password_file
        if path is None:
            return in_url or os.environ.get(PASSWORD_VARIABLE) or None
        if in_url is not None:
            raise AdapterError(f"{self}: a password in the URL and a password_file", lasting=True)
        try:
            password = Path(path).read_text().strip("\r\n")
        except (OSError, UnicodeDecodeError) as fault:
            why = fault.strerror if isinstance(fault, OSError) else "it is no text"
            raise AdapterError(f"password_file {path}: {why}", lasting=True) from None
        if not password:
            raise AdapterError(f"password_file {path} is empty", lasting=True)
        return password

    def _certificates(self) -> dict[str, Any]:
        files = {
            "ssl_ca_certs": self._config.ca_file,
            "ssl_certfile": self._config.cert_file,
            "ssl_keyfile": self._config.key_file,
        }
        named = {option: path for option, path in files.items() if path is not None}
        if named and not self._tls:
            raise AdapterError(
                f"{self}: certificates are named, but the URL begins with"
                f" {self._config.url.partition('://')[0]}://: TLS is rediss://",
                lasting=True,
            )
        for path in named.values():
            try:
                Path(path).read_bytes()
            except OSError as fault:
                raise AdapterError(f"{path}: {fault.strerror}", lasting=True) from None
        verified = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
        return {**named, **verified} if self._tls else {}


def _parsed(url: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]
    except ValueError:  # it may quote the password
        raise AdapterError("url is no URL: redis://host:port/db", lasting=True) from None
    if further := sorted(found.keys() - _IN_URL):
        raise AdapterError(f"url: {', '.join(further)}: only db can follow the ?", lasting=True)
    if url.startswith("unix:") and not found.get("path"):
        raise AdapterError("url names no socket: unix:///path/of/socket", lasting=True)
    return found


def _no_retry() -> Retry:
    """Trying again is the worker's business."""
    return Retry(NoBackoff(), 0)
